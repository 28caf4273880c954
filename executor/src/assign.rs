//! Which slot of which expert every token copy gets.

use moeplan_traces::{RoutingStep, TokenStep};

/// The routing of one rank's tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Assignment {
    /// Experts, (T, k), best first.
    pub ids: Vec<u32>,
    /// Factor of each choice's output, (T, k).
    pub scores: Vec<f32>,
    /// Place of each copy in its expert's queue, (T, k); past the limit it is dropped.
    pub locations: Vec<u32>,
    /// Copies routed to each expert, (E).
    pub counts: Vec<u32>,
}

/// Places in the experts' queues: all first choices before all second ones, tokens in `order`
/// (Section 11 of the spec sheet). Returns locations (T, k) and counts (E).
pub fn locate(ids: &[u32], top_k: usize, experts: usize, order: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let mut counts = vec![0; experts];
    let mut locations = vec![0; ids.len()];
    for choice in 0..top_k {
        for &token in order {
            let copy = token as usize * top_k + choice;
            let count = &mut counts[ids[copy] as usize];
            locations[copy] = *count;
            *count += 1;
        }
    }
    (locations, counts)
}

/// The order in which tokens get slots: as they come, or with batch-prioritized routing by the
/// largest gate score, best first, ties as they come.
pub fn order(best: &[f32], prioritized: bool) -> Vec<u32> {
    let mut order: Vec<u32> = (0..best.len() as u32).collect();
    if prioritized {
        order.sort_by(|&a, &b| best[b as usize].total_cmp(&best[a as usize]));
    }
    order
}

/// Gives tokens of every rank experts so that the counts are those of `step`: every token gets
/// `top_k` different ones, spread over the token order.
///
/// Experts are dealt out in turn, most copies first, as a round-robin over the tokens: copies of
/// one expert are at most as many as tokens, so none gets the same expert twice.
pub fn tokens_of(step: &RoutingStep) -> Result<TokenStep, moeplan_traces::TraceError> {
    let top_k = step.top_k() as usize;
    let mut tokens_per_rank = Vec::new();
    let mut ids = Vec::new();
    for row in step.rows() {
        let copies: usize = row.iter().map(|&count| count as usize).sum();
        let tokens = copies / top_k;
        let mut of_rank = vec![0; copies];
        // Copies in order of experts, dealt to token `i mod T`: the copies of one expert fall on
        // different tokens.
        let all = row.iter().enumerate();
        let copies =
            all.flat_map(|(expert, &count)| std::iter::repeat_n(expert as u32, count as usize));
        for (index, expert) in copies.enumerate() {
            of_rank[index % tokens * top_k + index / tokens] = expert;
        }
        // Tokens that follow each other would share experts; a stride prime to T spreads them.
        let stride = coprime(tokens);
        for token in 0..tokens {
            let from = token * stride % tokens * top_k;
            ids.extend_from_slice(&of_rank[from..from + top_k]);
        }
        tokens_per_rank.push(tokens);
    }
    TokenStep::new(
        step.step(),
        step.layer(),
        step.top_k(),
        step.num_experts(),
        &tokens_per_rank,
        ids,
        None,
    )
}

/// A number near the golden section of `n` that shares no factor with it.
fn coprime(n: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let start = (n as f64 * 0.618) as usize;
    (start.max(1)..=n.max(1))
        .find(|&candidate| gcd(candidate, n) == 1)
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use moeplan_traces::{RoutingSpec, Shape};

    #[test]
    fn tokens_have_the_counts_they_were_made_of() {
        let shape = Shape {
            ranks: 3,
            experts: 8,
            tokens_per_rank: 40,
            top_k: 3,
        };
        let spec: RoutingSpec = "hot:0.33".parse().unwrap();
        let step = spec.generate(&shape, 7, 2, 1).unwrap();
        assert_eq!(
            tokens_of(&step).unwrap().counts().all_counts(),
            step.all_counts()
        );
    }

    #[test]
    fn first_choices_come_before_second_ones() {
        let (locations, counts) = locate(&[0, 1, 1, 0, 0, 1], 2, 2, &[0, 1, 2]);
        assert_eq!(locations, [0, 1, 0, 2, 1, 2]);
        assert_eq!(counts, [3, 3]);
    }

    #[test]
    fn the_best_tokens_come_first_and_ties_keep_their_order() {
        assert_eq!(order(&[0.5, 0.9, 0.5], true), [1, 0, 2]);
    }
}
