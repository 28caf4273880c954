//! The eight imbalance workloads proposed for Megatron-LM.

use crate::draw::{Shares, Source, below, stream};
use crate::routing::Shape;

/// One of the workloads W0 to W7 of the token-imbalance benchmark proposed for Megatron-LM (pull
/// request NVIDIA/Megatron-LM#7488, for its roadmap issue #6757). Each isolates one kind of
/// unevenness. The hot set has `max(k, E / 4)` experts; `hot tokens` choose all their experts
/// within it, the others anywhere, each evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Every expert and rank equal: the control.
    Balanced,
    /// A fixed hot set, scattered at random over the experts; 3 of 4 tokens are hot.
    HotExperts,
    /// The hot set is the block from expert 0 on, so that the GPUs that own it are hot; 3 of 4
    /// tokens are hot.
    HotRank,
    /// The hot set is every other expert, `max(k, E / 2)` of them; 3 of 4 tokens are hot.
    Spread,
    /// Even choices, ranks differ in tokens: as `zipf:0,ragged=0.5` (the proposal leaves the
    /// raggedness open).
    SourceRagged,
    /// The lower half of the experts is never chosen, so that its GPUs receive nothing.
    ZeroExperts,
    /// As [`Workload::HotRank`], but every 3 steps the block moves on by its own width.
    RotatingHotspot,
    /// Even, but in every fourth step every other token is hot.
    Burst,
}

impl Workload {
    /// All of them, W0 first.
    pub const ALL: [Self; 8] = [
        Self::Balanced,
        Self::HotExperts,
        Self::HotRank,
        Self::Spread,
        Self::SourceRagged,
        Self::ZeroExperts,
        Self::RotatingHotspot,
        Self::Burst,
    ];

    /// `w0` to `w7`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Balanced => "w0",
            Self::HotExperts => "w1",
            Self::HotRank => "w2",
            Self::Spread => "w3",
            Self::SourceRagged => "w4",
            Self::ZeroExperts => "w5",
            Self::RotatingHotspot => "w6",
            Self::Burst => "w7",
        }
    }

    /// What a rank draws from in this step, over tokens in all.
    pub(super) fn source(self, shape: &Shape, seed: u64, step: u64, layer: u32) -> Source {
        let (experts, top_k, tokens) = (shape.experts, shape.top_k, shape.tokens_per_rank);
        let width = (experts / 4).max(top_k as usize).min(experts);
        let set = |chosen: &dyn Fn(usize) -> bool| {
            let weights: Vec<u128> = (0..experts).map(|e| u128::from(chosen(e))).collect();
            Shares::new(&weights, top_k)
        };
        let block = |start: usize| set(&|e| (e + experts - start) % experts < width);
        let even = set(&|_| true);
        // Of every four tokens the first is not hot.
        let (three_of_four, every_other) = (tokens - tokens.div_ceil(4), tokens.div_ceil(2));
        let mixed =
            |hot: Shares, some: u32| Source(vec![(hot, some), (even.clone(), tokens - some)]);
        match self {
            Self::Balanced | Self::SourceRagged => Source(vec![(even, tokens)]),
            Self::HotExperts => {
                let mut rng = stream(seed, "hot set", 0, layer, 0);
                let mut order: Vec<usize> = (0..experts).collect();
                for i in (1..experts).rev() {
                    order.swap(i, below(&mut rng, i + 1));
                }
                mixed(set(&|e| order[e] < width), three_of_four)
            }
            Self::HotRank => mixed(block(0), three_of_four),
            Self::Spread => {
                let spread = (experts / 2).max(top_k as usize).min(experts);
                let chosen: Vec<usize> = (0..spread).map(|i| 2 * i % experts).collect();
                mixed(set(&|e| chosen.contains(&e)), three_of_four)
            }
            Self::ZeroExperts => Source(vec![(set(&|e| e >= experts / 2), tokens)]),
            Self::RotatingHotspot => {
                // Below the number of experts after the remainder.
                let moves = (step / 3 % experts as u64) as usize;
                mixed(block(moves * width % experts), three_of_four)
            }
            Self::Burst if step % 4 == 3 => mixed(block(0), every_other),
            Self::Burst => Source(vec![(even, tokens)]),
        }
    }
}
