//! Drawing rows of counts from shares: integers only, so that every platform draws the same.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::routing::Shape;

/// Probability one, in the fixed-point numbers of [`Shares`].
const ONE: u64 = 1 << 32;

/// Copies drawn for one step before rows are reused: well under 0.1 s.
const DRAWN_COPIES: u64 = 1 << 22;

/// A stream of random numbers of its own for every purpose, step, layer and rank: adding a draw
/// in one place does not move any other.
pub fn stream(seed: u64, purpose: &str, step: u64, layer: u32, rank: u32) -> ChaCha8Rng {
    // FNV-1a, for the purpose; everything else fits into the 32-byte seed as it is.
    let mut name = 0xcbf2_9ce4_8422_2325_u64;
    for byte in purpose.bytes() {
        name = (name ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&name.to_le_bytes());
    key[16..24].copy_from_slice(&step.to_le_bytes());
    key[24..28].copy_from_slice(&layer.to_le_bytes());
    key[28..].copy_from_slice(&rank.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// A number below `bound`; the bias is under `bound / 2^32`.
pub(crate) fn below(rng: &mut ChaCha8Rng, bound: usize) -> usize {
    ((u64::from(rng.next_u32()) * bound as u64) >> 32) as usize
}

/// How likely a token is to choose every expert: fixed point, each at most [`ONE`], together
/// exactly `top_k` times [`ONE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shares {
    top_k: u32,
    chances: Vec<u64>,
}

impl Shares {
    /// Chances in proportion to `weights`. No chance exceeds one: what would is cut to one and the
    /// rest shared among the others. All weights zero mean even chances.
    ///
    /// `top_k` must be 1 to `weights.len()`.
    pub(crate) fn new(weights: &[u128], top_k: u32) -> Self {
        debug_assert!(top_k >= 1 && top_k as usize <= weights.len());
        let mut weights = narrow(weights);
        let mut chances = vec![0_u64; weights.len()];
        let mut cut = vec![false; weights.len()];
        let mut mass = u128::from(top_k) * u128::from(ONE);
        loop {
            let sum = free_sum(&weights, &cut);
            if sum == 0 {
                if mass == 0 {
                    break;
                }
                for (weight, &cut) in weights.iter_mut().zip(&cut) {
                    *weight = u64::from(!cut);
                }
                continue;
            }
            let over: Vec<usize> = (0..weights.len())
                .filter(|&e| !cut[e] && u128::from(weights[e]) * mass > u128::from(ONE) * sum)
                .collect();
            if over.is_empty() {
                break;
            }
            for expert in over {
                cut[expert] = true;
                chances[expert] = ONE;
                mass -= u128::from(ONE);
            }
        }
        let sum = free_sum(&weights, &cut);
        let mut left = mass;
        let mut rounded = Vec::new();
        for expert in (0..weights.len()).filter(|&e| !cut[e] && weights[e] > 0) {
            let product = u128::from(weights[expert]) * mass;
            // At most ONE: larger ones were cut above.
            chances[expert] = (product / sum) as u64;
            left -= product / sum;
            if product % sum != 0 {
                rounded.push(expert);
            }
        }
        for &expert in rounded.iter().take(left as usize) {
            chances[expert] += 1;
        }
        debug_assert_eq!(
            chances.iter().map(|&c| u128::from(c)).sum::<u128>(),
            u128::from(top_k) * u128::from(ONE)
        );
        Self { top_k, chances }
    }

    /// Adds the choices of `tokens` independent tokens to `row`.
    ///
    /// Every token chooses `top_k` different experts by systematic sampling: experts lie in random
    /// order on a line, each as long as its chance, and a comb with teeth one apart is dropped at
    /// random. This keeps every chance exactly, which drawing one expert after the other without
    /// replacement does not. For top-1 it is a plain multinomial draw. With more choices the comb
    /// ties experts one apart together, so the order is shuffled several times a row.
    pub(crate) fn draw(
        &self,
        tokens: u32,
        rng: &mut ChaCha8Rng,
        scratch: &mut Scratch,
        row: &mut [u32],
    ) {
        scratch.order.clear();
        scratch.order.extend(
            (0_u32..)
                .zip(&self.chances)
                .filter(|&(_, &chance)| chance > 0)
                .map(|(expert, _)| expert),
        );
        let shuffles = if self.top_k == 1 {
            1
        } else {
            (tokens / (4 * row.len() as u32).max(1)).clamp(4, 32)
        };
        let mut left = tokens;
        for turn in (1..=shuffles).rev() {
            let now = left / turn;
            left -= now;
            if now == 0 {
                continue;
            }
            if self.top_k > 1 {
                shuffle(rng, &mut scratch.order);
            }
            scratch.lay_out(self);
            for _ in 0..now {
                scratch.drop_comb(rng.next_u32());
            }
            scratch.collect(now, row);
        }
    }
}

fn free_sum(weights: &[u64], cut: &[bool]) -> u128 {
    let free = weights.iter().zip(cut).filter(|&(_, &cut)| !cut);
    free.map(|(&weight, _)| u128::from(weight)).sum()
}

/// The weights scaled down by a power of two until they sum to less than 2^63.
fn narrow(weights: &[u128]) -> Vec<u64> {
    // Halves, so that the sum of two huge ones cannot overflow.
    let half: u128 = weights
        .iter()
        .fold(0, |sum: u128, &w| sum.saturating_add(w.div_ceil(2)));
    let shift = (128 - half.leading_zeros()).saturating_sub(62);
    weights.iter().map(|&w| (w >> shift) as u64).collect()
}

fn shuffle(rng: &mut ChaCha8Rng, order: &mut [u32]) {
    for i in (1..order.len()).rev() {
        order.swap(i, below(rng, i + 1));
    }
}

/// The line on which experts lie, folded at every one, and an index into it; reused between rows.
///
/// As teeth lie one apart, all that a comb does follows from where its first tooth falls among the
/// ends of experts modulo one: a token costs one look-up, whatever the number of its choices.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    order: Vec<u32>,
    /// Where every expert of `order` ends.
    ends: Vec<u64>,
    /// The ends modulo one, ascending, each with its place in `order`; one itself comes last.
    folded: Vec<(u64, usize)>,
    /// For every `2^shift` of zero to one the first of `folded` that ends beyond its start.
    guide: Vec<u32>,
    shift: u32,
    /// Combs whose first tooth falls before an end of `folded` and not before the one in front.
    combs: Vec<u32>,
    /// By place in `order`: combs whose first tooth falls before that expert's end modulo one.
    before: Vec<u32>,
}

impl Scratch {
    fn lay_out(&mut self, shares: &Shares) {
        self.ends.clear();
        let mut end = 0;
        for &expert in &self.order {
            end += shares.chances[expert as usize];
            self.ends.push(end);
        }
        self.folded.clear();
        let folded = self.ends.iter().map(|end| end % ONE).zip(0..);
        self.folded.extend(folded);
        // Stable: as many ascending runs as a token has choices are merged.
        self.folded.sort_by_key(|&(end, _)| end);
        self.folded.push((ONE, self.order.len()));
        let buckets = 2 * self.order.len().next_power_of_two() as u64;
        self.shift = (ONE / buckets).max(1).ilog2();
        self.guide.clear();
        let mut at = 0;
        for start in (0..ONE).step_by(1 << self.shift) {
            while self.folded[at].0 <= start {
                at += 1;
            }
            self.guide.push(at as u32);
        }
        self.combs.clear();
        self.combs.resize(self.folded.len(), 0);
    }

    fn drop_comb(&mut self, tooth: u32) {
        let tooth = u64::from(tooth);
        let mut at = self.guide[(tooth >> self.shift) as usize] as usize;
        while self.folded[at].0 <= tooth {
            at += 1;
        }
        self.combs[at] += 1;
    }

    /// Adds to `row` the teeth that `dropped` combs have within every expert.
    fn collect(&mut self, dropped: u32, row: &mut [u32]) {
        self.before.resize(self.folded.len(), 0);
        let mut before = 0;
        for (&(_, place), combs) in self.folded.iter().zip(&self.combs) {
            before += combs;
            self.before[place] = before;
        }
        // Teeth of all combs before an expert's end: one a comb and whole length, and part of the next.
        let mut counted = 0;
        for ((&expert, end), before) in self.order.iter().zip(&self.ends).zip(&self.before) {
            let teeth = end / ONE * u64::from(dropped) + u64::from(*before);
            row[expert as usize] += (teeth - counted) as u32;
            counted = teeth;
        }
    }
}

/// What one source rank draws from: shares, each with how many of its tokens choose by them.
#[derive(Debug, Clone)]
pub(crate) struct Source(pub(crate) Vec<(Shares, u32)>);

impl Source {
    /// Every expert's share of the copies, over all parts.
    pub(crate) fn mean_shares(&self) -> Vec<f64> {
        let experts = self.0.first().map_or(0, |(shares, _)| shares.chances.len());
        let mut mean = vec![0.0; experts];
        let all: f64 = self.0.iter().map(|(_, tokens)| f64::from(*tokens)).sum();
        for (shares, tokens) in &self.0 {
            let part = f64::from(*tokens) / all.max(1.0) / (ONE * u64::from(shares.top_k)) as f64;
            for (mean, &chance) in mean.iter_mut().zip(&shares.chances) {
                *mean += part * chance as f64;
            }
        }
        mean
    }
}

/// Counts for all ranks of `shape`; rank `s` draws from `sources[s mod len]`.
///
/// Rows are drawn one by one until about 2^22 copies are drawn; later ranks reuse rows of the same
/// source, because 2,048 ranks with 32,768 copies each would take half a second. When every
/// `replicas` neighbours have equal chances, a reused row has them rotated by the number of the
/// reuse, which is as likely a draw: otherwise the noise of equal rows would add up in the same
/// experts. With `replicas` 1 reused rows are plain copies: the noise within a rank is right, that
/// of an expert's total is the noise of the drawn rows only.
pub(crate) fn fill_rows(
    shape: &Shape,
    all: &[Source],
    replicas: usize,
    stream_of_rank: impl Fn(u32) -> ChaCha8Rng,
) -> Vec<u32> {
    let sources = all.len().min(shape.ranks).max(1);
    let rounds = shape.ranks.div_ceil(sources);
    let affordable = DRAWN_COPIES
        / shape
            .copies_per_rank()
            .saturating_mul(sources as u64)
            .max(1);
    let drawn_rounds = rounds.min(usize::try_from(affordable).unwrap_or(rounds).max(1));
    let drawn = (drawn_rounds * sources).min(shape.ranks);

    let mut counts = vec![0; shape.ranks * shape.experts];
    let (fresh, reused) = counts.split_at_mut(drawn * shape.experts);
    let mut scratch = Scratch::default();
    for (rank, row) in fresh.chunks_exact_mut(shape.experts).enumerate() {
        let mut rng = stream_of_rank(rank as u32);
        for (shares, tokens) in &all[rank % sources].0 {
            shares.draw(*tokens, &mut rng, &mut scratch, row);
        }
    }
    for (rank, row) in (drawn..).zip(reused.chunks_exact_mut(shape.experts)) {
        let original = &fresh[(rank % drawn) * shape.experts..][..shape.experts];
        let turn = (rank / drawn) % replicas;
        for (to, from) in row
            .chunks_exact_mut(replicas)
            .zip(original.chunks_exact(replicas))
        {
            to[turn..].copy_from_slice(&from[..replicas - turn]);
            to[..turn].copy_from_slice(&from[replicas - turn..]);
        }
    }
    counts
}
