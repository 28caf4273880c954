//! What does not fit is told in one line.

use crate::fixture::{layer, plan, run};
use moeplan_executor::cpu::Cpu;
use moeplan_executor::{Inputs, Routing};
use moeplan_traces::TokenStep;

fn refused(inputs: &Inputs, layer: &moeplan_sim::spec::ResolvedLayer) -> String {
    match run(layer, layer.world_size, plan(), inputs, &mut Cpu::new()) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn numbers_that_are_none_are_named() {
    let layer = layer(2, 4, (8, 8), 2, 1, 1.0);
    let good = Inputs::random(&layer, 0, Routing::Gate);
    let mut bad = good.clone();
    bad.tokens[1][5] = f32::NAN;
    assert_eq!(
        refused(&bad, &layer),
        "`tokens of rank 1, number 5`: expected a finite number, found NaN"
    );
    let mut bad = good.clone();
    bad.experts[1].down[3] = f32::INFINITY;
    assert!(refused(&bad, &layer).starts_with("`W2 of expert 1, number 3`"));
    let mut bad = good;
    bad.gate.pop();
    assert!(refused(&bad, &layer).contains("expected 16 numbers, found 15"));
}

#[test]
fn traces_that_do_not_fit_are_named() {
    let layer = layer(2, 4, (8, 8), 2, 1, 1.0);
    let refused = |ranks: &[usize], experts: usize| {
        let tokens = ranks.iter().sum::<usize>();
        let step = TokenStep::new(0, 0, 1, experts, ranks, vec![0; tokens], None).unwrap();
        refused(&Inputs::random(&layer, 0, Routing::Forced(step)), &layer)
    };
    assert!(refused(&[4, 4, 4], 2).contains("`trace, source ranks`: expected 2"));
    assert!(refused(&[4, 4], 3).contains("`trace, experts`: expected 2"));
    assert!(refused(&[4, 5], 2).contains("`trace, tokens of rank 1`: expected 4"));
}

#[test]
fn channels_that_do_not_divide_over_ranks_are_named() {
    let layer = layer(4, 4, (8, 6), 1, 1, 1.0);
    let error = refused(&Inputs::random(&layer, 0, Routing::Gate), &layer);
    assert!(
        error.contains("`hidden-dim`: expected a multiple of the 4 ranks"),
        "{error}"
    );
}
