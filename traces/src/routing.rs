//! How many token copies every rank sends to every expert in one step.

use crate::error::{Place, TraceError};

/// Most cells (ranks times experts) of one step: 1 GiB of counts.
pub(crate) const MAX_CELLS: usize = 1 << 28;

/// The size of a routing problem, as asked of [`RoutingStep::resample`] and the generators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Source ranks: GPUs that route tokens.
    pub ranks: usize,
    /// Global experts.
    pub experts: usize,
    /// Tokens of one rank in one step (`T` of the paper).
    pub tokens_per_rank: u32,
    /// Experts that every token goes to (`k` of the paper).
    pub top_k: u32,
}

impl Shape {
    /// Fails when a size is zero, when a token would need more experts than there are, or when
    /// the step would not fit in memory.
    pub fn check(&self) -> Result<(), TraceError> {
        let fail = |field: &str, expected: &str, found: String| {
            Err(TraceError::invalid(
                Place::of("shape").field(field),
                expected,
                found,
            ))
        };
        if self.ranks == 0 {
            return fail("ranks", "at least 1", "0".into());
        }
        if self.experts == 0 {
            return fail("experts", "at least 1", "0".into());
        }
        if self.tokens_per_rank == 0 {
            return fail("tokens_per_rank", "at least 1", "0".into());
        }
        if self.top_k == 0 || self.top_k as usize > self.experts {
            let expected = format!("1 to {} (the number of experts)", self.experts);
            return fail("top_k", &expected, self.top_k.to_string());
        }
        if self.cells().is_none() {
            let expected = format!("ranks * experts of at most {MAX_CELLS}");
            return fail(
                "ranks",
                &expected,
                format!("{} * {}", self.ranks, self.experts),
            );
        }
        Ok(())
    }

    /// Token copies that leave one rank.
    pub fn copies_per_rank(&self) -> u64 {
        u64::from(self.tokens_per_rank) * u64::from(self.top_k)
    }

    pub(crate) fn cells(&self) -> Option<usize> {
        self.ranks
            .checked_mul(self.experts)
            .filter(|&cells| cells <= MAX_CELLS)
    }
}

/// What one row (one source rank) breaks: the expert if one is to blame, expected, found.
pub(crate) struct RowProblem {
    pub(crate) expert: Option<usize>,
    pub(crate) expected: String,
    pub(crate) found: String,
}

/// Tokens of a row, if it is one that a top-k gate can produce: a token has `top_k` copies and
/// never two for the same expert.
pub(crate) fn check_row(row: &[u32], top_k: u32) -> Result<u32, RowProblem> {
    let copies: u64 = row.iter().map(|&c| u64::from(c)).sum();
    let tokens = copies / u64::from(top_k.max(1));
    if top_k == 0 || !copies.is_multiple_of(u64::from(top_k)) {
        return Err(RowProblem {
            expert: None,
            expected: format!("copies divisible by top_k = {top_k}"),
            found: format!("{copies} copies in the row"),
        });
    }
    let Ok(tokens) = u32::try_from(tokens) else {
        return Err(RowProblem {
            expert: None,
            expected: format!("at most {} tokens", u32::MAX),
            found: format!("{tokens}"),
        });
    };
    // The largest first: without an early end it is found many at a time.
    if row.iter().copied().max().unwrap_or(0) <= tokens {
        return Ok(tokens);
    }
    let expert = row.iter().position(|&count| count > tokens);
    Err(RowProblem {
        expert,
        expected: format!("at most {tokens} copies, one for each token of the row"),
        found: expert.map_or(0, |expert| row[expert]).to_string(),
    })
}

/// Token copies from every source rank to every expert, in one step of one MoE layer.
///
/// Every row is one that a top-k gate can produce: it sums to `top_k` times the tokens of the
/// rank, and no expert gets more copies from a rank than the rank has tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingStep {
    step: u64,
    layer: u32,
    top_k: u32,
    num_experts: usize,
    /// `[source_ranks, num_experts]`, row-major.
    counts: Vec<u32>,
}

impl RoutingStep {
    /// A recorded step. `counts` is `[source_ranks, num_experts]`, row-major.
    ///
    /// Fails when the counts are not whole rows, or are not what a top-k gate can produce.
    pub fn new(
        step: u64,
        layer: u32,
        top_k: u32,
        num_experts: usize,
        counts: Vec<u32>,
    ) -> Result<Self, TraceError> {
        let place = || Place::of(format!("routing of step {step}, layer {layer}"));
        if num_experts == 0 || counts.is_empty() || !counts.len().is_multiple_of(num_experts) {
            return Err(TraceError::invalid(
                place().field("counts"),
                format!("one or more rows of {num_experts} experts"),
                format!("{} counts", counts.len()),
            ));
        }
        if top_k == 0 || top_k as usize > num_experts {
            return Err(TraceError::invalid(
                place().field("top_k"),
                format!("1 to {num_experts} (the number of experts)"),
                top_k.to_string(),
            ));
        }
        for (rank, row) in counts.chunks_exact(num_experts).enumerate() {
            check_row(row, top_k).map_err(|problem| {
                let field = match problem.expert {
                    Some(expert) => format!("rank {rank}, expert {expert}"),
                    None => format!("rank {rank}"),
                };
                TraceError::invalid(place().field(field), problem.expected, problem.found)
            })?;
        }
        Ok(Self::from_checked(step, layer, top_k, num_experts, counts))
    }

    /// Rows that the caller has built to be valid.
    pub(crate) fn from_checked(
        step: u64,
        layer: u32,
        top_k: u32,
        num_experts: usize,
        counts: Vec<u32>,
    ) -> Self {
        debug_assert!(
            counts
                .chunks(num_experts)
                .all(|row| row.len() == num_experts && check_row(row, top_k).is_ok())
        );
        Self {
            step,
            layer,
            top_k,
            num_experts,
            counts,
        }
    }

    /// Perfectly even routing, without sampling noise.
    ///
    /// What does not divide goes round: rank 0 gives its spare copies to the first experts, rank
    /// 1 goes on where rank 0 stopped, so expert loads differ by at most one copy.
    pub fn uniform(shape: &Shape, step: u64, layer: u32) -> Result<Self, TraceError> {
        shape.check()?;
        let experts = shape.experts;
        let copies = shape.copies_per_rank();
        // At most tokens_per_rank, as top_k <= experts.
        let base = u32::try_from(copies / experts as u64).unwrap_or(u32::MAX);
        let spare = (copies % experts as u64) as usize;
        let mut counts = vec![base; shape.ranks * experts];
        let mut next = 0;
        for row in counts.chunks_exact_mut(experts) {
            for _ in 0..spare {
                row[next] += 1;
                next = (next + 1) % experts;
            }
        }
        Ok(Self::from_checked(
            step,
            layer,
            shape.top_k,
            experts,
            counts,
        ))
    }

    /// This step scaled to another world size, number of experts and tokens per rank.
    ///
    /// Kept: which experts are popular and by how much, and how that differs between source
    /// ranks. Target rank `s` replays recorded rank `s mod source_ranks`. With `j` times the
    /// experts, every recorded expert becomes `j` neighbours that share its load evenly; with
    /// fewer, neighbours merge; in general shares are split by overlap of the intervals
    /// `[e/E, (e+1)/E)`.
    ///
    /// Assumed: the recorded shares are the true ones, although they hold the noise of the
    /// recording; tokens are independent given the shares, each choosing `top_k` different
    /// experts; another `top_k` scales the copies and keeps the shares (a gate's second choices
    /// are really flatter than its first); an expert that would then be chosen more than once by
    /// every token is chosen by every token, and the others share the rest. A recorded rank
    /// without tokens takes the shares of the whole step.
    ///
    /// Counts are drawn anew, as the noise of few tokens per expert is real and decides the
    /// capacity a step needs. Large targets reuse rows: see `fill_rows` in `draw.rs`. The same
    /// `seed` gives the same step on every platform. When the target equals the recorded shape
    /// the step comes back unchanged.
    pub fn resample(&self, target: &Shape, seed: u64) -> Result<Self, TraceError> {
        crate::resample::resample(self, target, seed)
    }

    /// Index of the training step.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Index of the MoE layer.
    pub fn layer(&self) -> u32 {
        self.layer
    }

    /// Experts that every token goes to.
    pub fn top_k(&self) -> u32 {
        self.top_k
    }

    /// Number of global experts.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Number of GPUs that route tokens.
    pub fn source_ranks(&self) -> usize {
        self.counts.len() / self.num_experts
    }

    /// Copies that `rank` sends to every expert.
    ///
    /// # Panics
    /// When there is no such rank.
    pub fn counts(&self, rank: usize) -> &[u32] {
        &self.counts[rank * self.num_experts..][..self.num_experts]
    }

    /// All counts, `[source_ranks, num_experts]` row-major.
    pub fn all_counts(&self) -> &[u32] {
        &self.counts
    }

    /// Rows of all ranks, in rank order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.counts.chunks_exact(self.num_experts)
    }

    /// Tokens that `rank` routes: its copies over `top_k`.
    ///
    /// # Panics
    /// When there is no such rank.
    pub fn tokens(&self, rank: usize) -> u32 {
        row_tokens(self.counts(rank), self.top_k)
    }

    /// The shape of this step, or nothing when ranks differ in tokens or have none.
    pub fn shape(&self) -> Option<Shape> {
        let tokens_per_rank = self.tokens(0);
        let even = self
            .rows()
            .all(|row| row_tokens(row, self.top_k) == tokens_per_rank);
        (even && tokens_per_rank > 0).then_some(Shape {
            ranks: self.source_ranks(),
            experts: self.num_experts,
            tokens_per_rank,
            top_k: self.top_k,
        })
    }

    /// Copies that every expert receives from all ranks together.
    pub fn expert_loads(&self) -> Vec<u64> {
        let mut loads = vec![0; self.num_experts];
        for row in self.rows() {
            for (load, &count) in loads.iter_mut().zip(row) {
                *load += u64::from(count);
            }
        }
        loads
    }

    /// All copies of the step.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|&count| u64::from(count)).sum()
    }

    /// The smallest capacity factor `f` that drops nothing.
    ///
    /// Capacity is per source GPU and expert, `k * f * T / E`, and all GPUs share one `f` (Tutel
    /// takes the maximum over them): so the maximum over ranks and experts of
    /// `count * E / (k * T)`. Between 1 (even) and `E / k` (every token picks the same experts);
    /// 0 for a step without tokens.
    pub fn needed_capacity_factor(&self) -> f64 {
        self.rows()
            .map(|row| {
                let copies: u64 = row.iter().map(|&count| u64::from(count)).sum();
                let most = row.iter().copied().max().unwrap_or(0);
                if copies == 0 {
                    0.0
                } else {
                    f64::from(most) * self.num_experts as f64 / copies as f64
                }
            })
            .fold(0.0, f64::max)
    }

    /// Copies beyond the slots of their expert, when an expert has `capacity_per_gpu` slots for
    /// every source rank.
    pub fn dropped(&self, capacity_per_gpu: u64) -> u64 {
        self.counts
            .iter()
            .map(|&count| u64::from(count).saturating_sub(capacity_per_gpu))
            .sum()
    }

    /// Load of the busiest expert over the mean load; 0 for a step without tokens.
    pub fn max_over_mean(&self) -> f64 {
        let loads = self.expert_loads();
        let total: u64 = loads.iter().sum();
        let most = loads.iter().copied().max().unwrap_or(0);
        if total == 0 {
            0.0
        } else {
            most as f64 * loads.len() as f64 / total as f64
        }
    }
}

fn row_tokens(row: &[u32], top_k: u32) -> u32 {
    let copies: u64 = row.iter().map(|&count| u64::from(count)).sum();
    // Rows are checked to hold at most u32::MAX tokens.
    (copies / u64::from(top_k)) as u32
}
