//! Steps with the choices of every token.

use moeplan_traces::{TokenStep, TraceError};
use proptest::prelude::*;

fn step(
    top_k: u32,
    experts: usize,
    tokens: &[usize],
    ids: &[u32],
    scores: Option<&[f32]>,
) -> Result<TokenStep, TraceError> {
    let scores = scores.map(<[f32]>::to_vec);
    TokenStep::new(3, 1, top_k, experts, tokens, ids.to_vec(), scores)
}

#[test]
fn choices_become_counts() {
    let scores = [0.5, 0.25, 1.0, -1.0, 0.0, 0.1];
    let step = step(2, 4, &[2, 0, 1], &[3, 0, 3, 1, 0, 2], Some(&scores)).unwrap();
    assert_eq!((step.source_ranks(), step.total_tokens()), (3, 3));
    assert_eq!((step.tokens(0), step.tokens(1), step.tokens(2)), (2, 0, 1));
    assert_eq!(step.ids(2), [0, 2]);
    assert_eq!(step.scores(0), Some(&scores[..4]));
    let counts = step.counts();
    assert_eq!((counts.step(), counts.layer(), counts.top_k()), (3, 1, 2));
    assert_eq!(counts.all_counts(), [1, 1, 0, 2, 0, 0, 0, 0, 1, 0, 1, 0]);
}

#[test]
fn impossible_steps_are_refused() {
    let refuse = |result: Result<TokenStep, TraceError>, field: &str, words: &str| {
        let error = result.unwrap_err().to_string();
        let place = format!("tokens of step 3, layer 1: `{field}`: ");
        assert!(error.starts_with(&place), "{error}");
        assert!(error.contains(words), "{error}");
    };
    refuse(step(0, 4, &[1], &[], None), "top_k", "1 to 4");
    refuse(step(5, 4, &[1], &[0; 5], None), "top_k", "found 5");
    refuse(step(1, 4, &[], &[], None), "source_rank", "1 or more");
    refuse(step(1, 4, &[0, 0], &[], None), "tokens", "at least one");
    refuse(step(2, 4, &[2], &[0, 1, 2], None), "ids", "found 3 ids");
    refuse(step(2, 4, &[usize::MAX, 9], &[0, 1], None), "ids", "2 ids");
    let twice = step(2, 4, &[1, 1], &[0, 1, 2, 2], None);
    refuse(twice, "rank 1, token 0", "different experts");
    let beyond = step(2, 4, &[0, 2], &[0, 1, 2, 4], None);
    refuse(beyond, "rank 1, token 1", "from 0 to 3");
    refuse(step(1, 4, &[1], &[0], Some(&[])), "scores", "1 scores");
    for bad in [f32::NAN, f32::INFINITY] {
        let result = step(1, 4, &[2], &[0, 1], Some(&[1.0, bad]));
        refuse(result, "rank 0, token 1", "finite");
    }
}

proptest! {
    #[test]
    fn copies_are_conserved(tokens in prop::collection::vec(0_usize..9, 1..5), k in 1_u32..4) {
        let total: usize = tokens.iter().sum();
        prop_assume!(total > 0);
        let ids: Vec<u32> = (0..total as u32)
            .flat_map(|token| (0..k).map(move |choice| (token * 7 + choice) % 5))
            .collect();
        let step = step(k, 5, &tokens, &ids, None).unwrap();
        let counts = step.counts();
        for (rank, &tokens) in tokens.iter().enumerate() {
            prop_assert_eq!(counts.tokens(rank) as usize, tokens);
        }
    }
}
