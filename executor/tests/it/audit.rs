//! A program that states other bytes than its run touches is told from one that does not.

use crate::fixture::{layer, plan};
use moeplan_executor::cpu::Cpu;
use moeplan_executor::{Inputs, Routing, execute, tokens_of_step};
use moeplan_sim::compile::{Load, Routing as Counts, Source, compile};
use moeplan_sim::ir::{OpKind, PerRank, Program, Traffic};
use moeplan_sim::spec::{Padding, Phase};

fn error_after(change: impl Fn(&mut Program)) -> String {
    let layer = layer(2, 16, (8, 16), 4, 2, 1.0);
    let inputs = Inputs::random(&layer, 1, Routing::Gate);
    let mut backend = Cpu::new();
    let tokens = tokens_of_step(&mut backend, &layer, &inputs).unwrap();
    let counts = tokens.counts();
    let load = Load::new(&layer, 1.0, Padding::Capacity, &Counts::Step(&counts));
    let source = Source {
        layer: &layer,
        gpus_per_node: 2,
        plan: plan(),
        load: &load,
        phase: Phase::Training,
    };
    let mut program = compile(source).unwrap();
    change(&mut program);
    match execute(&program, &layer, &mut backend, &inputs, &tokens) {
        Ok(_) => "agreed".into(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_untouched_program_agrees() {
    assert_eq!(error_after(|_| ()), "agreed");
}

#[test]
fn other_bytes_between_ranks_are_told() {
    let error = error_after(|program| {
        if let Traffic::Uniform { bytes_per_peer, .. } = &mut program.traffic[0] {
            *bytes_per_peer += 4;
        }
    });
    assert!(
        error.contains("exchange") && error.contains("stated"),
        "{error}"
    );
}

#[test]
fn other_elements_of_a_pass_are_told() {
    let error = error_after(|program| {
        for op in &mut program.ops {
            if let OpKind::Elementwise { elements, .. } = &mut op.kind {
                *elements = PerRank::Same(elements.get(0) + 1);
                break;
            }
        }
    });
    assert!(
        error.contains("bias") && error.contains("stated"),
        "{error}"
    );
}

#[test]
fn other_sizes_of_buffers_are_told() {
    let error = error_after(|program| {
        let buffer = program
            .buffers
            .iter_mut()
            .find(|buffer| buffer.name == "hidden 0")
            .unwrap();
        buffer.bytes = PerRank::Same(buffer.bytes.get(0) + 4);
    });
    assert!(error.contains("`hidden 0` has"), "{error}");
}
