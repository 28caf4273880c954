//! Which experts every single token chose, in one step of one layer.

use crate::error::{Place, TraceError};
use crate::routing::{MAX_CELLS, RoutingStep};

/// The choices of every token in one step of one MoE layer, rank by rank.
///
/// Every token chose `top_k` different experts, best first. A step has at least one token; single
/// ranks may have none, and ranks may differ in tokens. [`TokenStep::counts`] is what simulators
/// need of it; an executor replays it exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenStep {
    step: u64,
    layer: u32,
    top_k: u32,
    num_experts: usize,
    /// First token of every source rank, then the number of tokens: `[source_ranks + 1]`.
    starts: Vec<usize>,
    /// `[tokens, top_k]`, row-major, rank after rank.
    ids: Vec<u32>,
    /// Of the same shape as `ids`.
    scores: Option<Vec<f32>>,
}

impl TokenStep {
    /// A recorded step.
    ///
    /// `tokens_per_rank` says how many tokens every source rank has. `ids` is `[tokens, top_k]`,
    /// row-major, the tokens of rank 0 first; `scores`, if known, has the same shape.
    ///
    /// Fails when the sizes do not agree, when a token names an expert twice or one that there is
    /// not, or when a score is not finite.
    pub fn new(
        step: u64,
        layer: u32,
        top_k: u32,
        num_experts: usize,
        tokens_per_rank: &[usize],
        ids: Vec<u32>,
        scores: Option<Vec<f32>>,
    ) -> Result<Self, TraceError> {
        let fail = |field: &str, expected: String, found: String| {
            let place = Place::of(format!("tokens of step {step}, layer {layer}")).field(field);
            Err(TraceError::invalid(place, expected, found))
        };
        if top_k == 0 || top_k as usize > num_experts {
            let expected = format!("1 to {num_experts} (the number of experts)");
            return fail("top_k", expected, top_k.to_string());
        }
        let ranks = tokens_per_rank.len();
        let cells = ranks.checked_mul(num_experts);
        if ranks == 0 || cells.is_none_or(|cells| cells > MAX_CELLS) {
            let expected =
                format!("1 or more source ranks, ranks * experts of at most {MAX_CELLS}");
            return fail(
                "source_rank",
                expected,
                format!("{ranks} ranks, {num_experts} experts"),
            );
        }
        let mut starts = Vec::with_capacity(ranks + 1);
        let mut tokens = 0_usize;
        starts.push(0);
        for &more in tokens_per_rank {
            tokens = tokens.saturating_add(more);
            starts.push(tokens);
        }
        if tokens == 0 {
            return fail("tokens", "at least one token".into(), "none".into());
        }
        if u32::try_from(tokens).is_err() || tokens.checked_mul(top_k as usize) != Some(ids.len()) {
            let expected = format!("{top_k} expert ids for each of {tokens} tokens");
            return fail("ids", expected, format!("{} ids", ids.len()));
        }
        if let Some(scores) = &scores
            && scores.len() != ids.len()
        {
            let expected = format!("{} scores, one for each expert id", ids.len());
            return fail("scores", expected, scores.len().to_string());
        }
        let built = Self {
            step,
            layer,
            top_k,
            num_experts,
            starts,
            ids,
            scores,
        };
        let mut seen = Seen::new(num_experts);
        let rows = built.ids.chunks_exact(top_k as usize);
        if let Some((token, row)) = rows.enumerate().find(|(_, row)| !seen.distinct(row)) {
            return fail(
                &built.name_of(token),
                format!("different experts from 0 to {}", num_experts - 1),
                format!("{row:?}"),
            );
        }
        let scores = built.scores.as_deref().unwrap_or_default();
        if let Some(at) = scores.iter().position(|score| !score.is_finite()) {
            return fail(
                &built.name_of(at / top_k as usize),
                "finite scores".into(),
                scores[at].to_string(),
            );
        }
        Ok(built)
    }

    /// `rank 1, token 5` for the token at `index` of all tokens.
    fn name_of(&self, index: usize) -> String {
        let rank = self.starts.partition_point(|&start| start <= index) - 1;
        format!("rank {rank}, token {}", index - self.starts[rank])
    }

    /// Copies from every source rank to every expert.
    pub fn counts(&self) -> RoutingStep {
        let mut counts = vec![0_u32; self.source_ranks() * self.num_experts];
        for (rank, row) in counts.chunks_exact_mut(self.num_experts).enumerate() {
            for &id in self.ids(rank) {
                row[id as usize] += 1;
            }
        }
        let (top_k, experts) = (self.top_k, self.num_experts);
        RoutingStep::from_checked(self.step, self.layer, top_k, experts, counts)
    }

    /// Index of the step.
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
        self.starts.len() - 1
    }

    /// Tokens that `rank` routes.
    ///
    /// # Panics
    /// When there is no such rank.
    pub fn tokens(&self, rank: usize) -> usize {
        self.starts[rank + 1] - self.starts[rank]
    }

    /// Tokens of all ranks together.
    pub fn total_tokens(&self) -> usize {
        self.ids.len() / self.top_k as usize
    }

    /// Experts that the tokens of `rank` chose, `[tokens, top_k]` row-major, best first.
    ///
    /// # Panics
    /// When there is no such rank.
    pub fn ids(&self, rank: usize) -> &[u32] {
        &self.ids[self.cells(rank)]
    }

    /// Scores of these choices, of the same shape; nothing when they were not recorded.
    ///
    /// # Panics
    /// When there is no such rank.
    pub fn scores(&self, rank: usize) -> Option<&[f32]> {
        let cells = self.cells(rank);
        self.scores.as_deref().map(|scores| &scores[cells])
    }

    /// Choices of all ranks, `[tokens, top_k]` row-major, rank after rank.
    pub fn all_ids(&self) -> &[u32] {
        &self.ids
    }

    /// Scores of all ranks, of the same shape.
    pub fn all_scores(&self) -> Option<&[f32]> {
        self.scores.as_deref()
    }

    fn cells(&self, rank: usize) -> std::ops::Range<usize> {
        let top_k = self.top_k as usize;
        self.starts[rank] * top_k..self.starts[rank + 1] * top_k
    }
}

/// Tells in `top_k` looks whether the choices of a token are different experts.
pub(crate) struct Seen {
    /// Token (counted from 1) that chose an expert last.
    last: Vec<u32>,
    token: u32,
}

impl Seen {
    pub(crate) fn new(num_experts: usize) -> Self {
        Self {
            last: vec![0; num_experts],
            token: 0,
        }
    }

    /// Whether the ids of the next token are in range and all different.
    pub(crate) fn distinct(&mut self, ids: &[u32]) -> bool {
        if self.token == u32::MAX {
            self.last.fill(0);
            self.token = 0;
        }
        self.token += 1;
        ids.iter().all(|&id| {
            let last = self.last.get_mut(id as usize);
            last.is_some_and(|last| std::mem::replace(last, self.token) != self.token)
        })
    }
}
