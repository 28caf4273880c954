//! Outputs and all gradients against the definitions; the definitions against finite differences.

use crate::fixture::{agree, cosine, layer, plan, run};
use moeplan_executor::cpu::Cpu;
use moeplan_executor::oracle::{CosineGate, layer as oracle};
use moeplan_executor::{Inputs, Routing};
use moeplan_sim::compile::Plan;
use moeplan_sim::spec::{Encode, Padding, ResolvedLayer};
use moeplan_traces::{RoutingSpec, Shape, TokenStep};

fn holds(layer: &ResolvedLayer, gpus_per_node: u64, plan: Plan, inputs: &Inputs) {
    let case = run(layer, gpus_per_node, plan, inputs, &mut Cpu::new()).unwrap();
    agree(&case, &oracle(layer, inputs, case.limit), 1e-5);
}

#[test]
fn one_rank_is_the_definition() {
    let layer = layer(1, 24, (16, 24), 4, 2, 0.0);
    holds(&layer, 1, plan(), &Inputs::random(&layer, 1, Routing::Gate));
}

#[test]
fn ranks_with_several_experts_exchange_tokens() {
    let layer = layer(4, 32, (16, 24), 8, 2, 1.0);
    holds(&layer, 4, plan(), &Inputs::random(&layer, 2, Routing::Gate));
}

#[test]
fn dropped_tokens_contribute_nothing() {
    let layer = layer(2, 40, (8, 16), 4, 1, 0.5);
    let inputs = Inputs::random(&layer, 3, Routing::Gate);
    let case = run(&layer, 2, plan(), &inputs, &mut Cpu::new()).unwrap();
    let oracle = oracle(&layer, &inputs, case.limit);
    assert!(
        oracle.kept.concat().iter().any(|kept| !kept),
        "nothing was dropped"
    );
    agree(&case, &oracle, 1e-5);
}

#[test]
fn batch_prioritized_routing_drops_the_least_certain_tokens() {
    let layer = layer(2, 40, (8, 16), 4, 2, 0.5);
    let mut inputs = Inputs::random(&layer, 4, Routing::Gate);
    inputs.prioritized = true;
    holds(&layer, 2, plan(), &inputs);
}

#[test]
fn noise_changes_what_the_gate_chooses() {
    let layer = layer(2, 40, (8, 16), 4, 2, 0.0);
    let quiet = Inputs::random(&layer, 4, Routing::Gate);
    let noisy = quiet.clone().with_gate_noise(&layer, 9, 8.0);
    let chosen = |inputs: &Inputs| oracle(&layer, inputs, 99).ids;
    assert_ne!(chosen(&quiet), chosen(&noisy));
    holds(&layer, 2, plan(), &noisy);
}

#[test]
fn a_cosine_gate_routes_and_learns() {
    for (top_k, temperature) in [(1, 0.7), (2, 2.5), (2, 9.0)] {
        let layer = cosine(layer(2, 40, (12, 16), 4, top_k, 0.8), 6);
        let mut inputs = Inputs::random(&layer, 10, Routing::Gate);
        *inputs.gate.last_mut().unwrap() = temperature;
        inputs.balance_weight = 0.3;
        holds(&layer, 2, plan(), &inputs);
        // Above ln 100 a temperature learns nothing.
        let gradients = oracle(&layer, &inputs, 99).gate_gradient;
        let learns = gradients.iter().any(|rank| *rank.last().unwrap() != 0.0);
        assert_eq!(learns, temperature < 100.0_f32.ln());
    }
}

#[test]
fn the_dense_path_gives_the_same() {
    let layer = layer(2, 24, (16, 8), 4, 2, 0.7);
    let plan = Plan {
        encode: Encode::Dense,
        forward_degree: 2,
        backward_degree: 4,
        ..plan()
    };
    holds(&layer, 2, plan, &Inputs::random(&layer, 5, Routing::Gate));
}

#[test]
fn dropless_steps_keep_every_token() {
    let layer = layer(4, 33, (8, 16), 8, 3, 1.0);
    let plan = Plan {
        padding: Padding::Dropless,
        forward_degree: 4,
        backward_degree: 2,
        ..plan()
    };
    holds(&layer, 2, plan, &Inputs::random(&layer, 6, Routing::Gate));
}

#[test]
fn a_recorded_step_is_replayed_exactly() {
    let layer = layer(2, 50, (8, 16), 4, 2, 0.8);
    let shape = Shape {
        ranks: 2,
        experts: 4,
        tokens_per_rank: 50,
        top_k: 2,
    };
    let spec: RoutingSpec = "zipf:1.0".parse().unwrap();
    let counts = spec.generate(&shape, 1, 0, 0).unwrap();
    let step = moeplan_executor::assign::tokens_of(&counts).unwrap();
    holds(
        &layer,
        2,
        plan(),
        &Inputs::random(&layer, 7, Routing::Forced(step.clone())),
    );
    let scores = (0..200)
        .map(|index| 0.1 + (index % 7) as f32 / 10.0)
        .collect();
    let ids = step.all_ids().to_vec();
    let scored = TokenStep::new(0, 0, 2, 4, &[50, 50], ids, Some(scores)).unwrap();
    holds(
        &layer,
        2,
        plan(),
        &Inputs::random(&layer, 7, Routing::Forced(scored)),
    );
}

/// The loss whose gradients the oracle claims to give.
fn loss(layer: &ResolvedLayer, inputs: &Inputs) -> f64 {
    let result = oracle(layer, inputs, 12);
    let products = result
        .output
        .iter()
        .zip(&inputs.output_gradient)
        .flat_map(|(y, g)| y.iter().zip(g).map(|(y, g)| y * f64::from(*g)));
    products.sum::<f64>()
        + f64::from(inputs.balance_weight) * result.balance_loss.iter().sum::<f64>()
}

/// Central difference of the loss by one number of the inputs.
fn slope(layer: &ResolvedLayer, inputs: &Inputs, number: impl Fn(&mut Inputs) -> &mut f32) -> f64 {
    let step = 1.0 / 1024.0;
    let mut moved = inputs.clone();
    let at = *number(&mut moved);
    *number(&mut moved) = at + step;
    let up = (loss(layer, &moved), f64::from(at + step));
    *number(&mut moved) = at - step;
    let down = (loss(layer, &moved), f64::from(at - step));
    (up.0 - down.0) / (up.1 - down.1)
}

#[test]
fn the_oracle_has_the_slopes_of_its_own_loss() {
    for (top_k, cosine_gate) in [(1, false), (2, false), (1, true), (2, true)] {
        let linear = layer(2, 6, (3, 4), 2, top_k, 1.0);
        let layer = match cosine_gate {
            false => linear,
            true => cosine(linear, 3),
        };
        let mut inputs = Inputs::random(&layer, 8, Routing::Gate);
        inputs.balance_weight = 0.5;
        let result = oracle(&layer, &inputs, 12);
        let close = |what: &str, slope: f64, gradient: f64| {
            let error = (slope - gradient).abs() / gradient.abs().max(0.1);
            assert!(error < 2e-3, "{what}: slope {slope}, gradient {gradient}");
        };
        for at in 0..18 {
            let slope = slope(&layer, &inputs, |i| &mut i.tokens[1][at]);
            close("token", slope, result.token_gradient[1][at]);
        }
        for at in 0..inputs.gate.len() {
            let slope = slope(&layer, &inputs, |i| &mut i.gate[at]);
            close(
                "gate",
                slope,
                result.gate_gradient.iter().map(|g| g[at]).sum(),
            );
        }
        for at in 0..12 {
            let up = slope(&layer, &inputs, |i| &mut i.experts[0].up[at]);
            close("W1", up, result.expert_gradients[0][0][at]);
            let down = slope(&layer, &inputs, |i| &mut i.experts[1].down[at]);
            close("W2", down, result.expert_gradients[1][2][at]);
        }
        for at in 0..3 {
            let up = slope(&layer, &inputs, |i| &mut i.experts[1].up_bias[at]);
            close("b1", up, result.expert_gradients[1][1][at]);
            let down = slope(&layer, &inputs, |i| &mut i.experts[0].down_bias[at]);
            close("b2", down, result.expert_gradients[0][3][at]);
        }
    }
}

#[test]
fn the_cosine_gate_has_the_slopes_of_its_logits() {
    let number = |index: usize| ((index * 37 % 19) as f64 - 9.0) / 7.0;
    let gate = CosineGate {
        channels: 3,
        projection: (0..12).map(number).collect(),
        experts: (12..27).map(number).collect(),
        temperature: 1.3,
    };
    let token: Vec<f64> = (30..34).map(number).collect();
    let upstream: Vec<f64> = (40..45).map(number).collect();
    let value = |gate: &CosineGate, token: &[f64]| -> f64 {
        gate.logits(token)
            .iter()
            .zip(&upstream)
            .map(|(l, g)| l * g)
            .sum()
    };
    let gradient = gate.gradient(&token, &upstream);
    let h = 1e-6;
    let close = |up: f64, down: f64, gradient: f64| {
        let slope = (up - down) / (2.0 * h);
        assert!(
            (slope - gradient).abs() < 1e-6,
            "slope {slope}, gradient {gradient}"
        );
    };
    for at in 0..token.len() {
        let moved = |by: f64| {
            let mut token = token.clone();
            token[at] += by;
            value(&gate, &token)
        };
        close(moved(h), moved(-h), gradient.token[at]);
    }
    let moved = |change: &dyn Fn(&mut CosineGate, f64), by: f64| {
        let mut gate = gate.clone();
        change(&mut gate, by);
        value(&gate, &token)
    };
    for at in 0..gate.projection.len() {
        let change = |gate: &mut CosineGate, by: f64| gate.projection[at] += by;
        close(
            moved(&change, h),
            moved(&change, -h),
            gradient.projection[at],
        );
    }
    for at in 0..gate.experts.len() {
        let change = |gate: &mut CosineGate, by: f64| gate.experts[at] += by;
        close(moved(&change, h), moved(&change, -h), gradient.experts[at]);
    }
    let change = |gate: &mut CosineGate, by: f64| gate.temperature += by;
    close(moved(&change, h), moved(&change, -h), gradient.temperature);
}
