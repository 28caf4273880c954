use super::*;
use crate::cost::analytic::Analytic;
use crate::hardware::{Hardware, builtin};
use crate::spec::{Phase, Strategy};

fn named(name: &str) -> ModelSpec {
    preset(name, 4_096).unwrap().unwrap()
}

#[track_caller]
fn close(ours: f64, theirs: f64, tolerance: f64) {
    let error = ours / theirs - 1.0;
    assert!(error.abs() <= tolerance, "{ours} against {theirs}: {error:+.4}");
}

#[test]
fn parameters_are_the_published_ones() {
    for &name in PRESETS {
        let (model, published) = (named(name), published(name).unwrap());
        close(model.parameters() as f64, published.parameters, 0.012);
        let mut active = model.active_parameters() as f64;
        if name == "gpt-oss-20b" {
            active -= 201_088.0 * 2_880.0;
        }
        close(active, published.active_parameters, 0.025);
    }
}

/// What the authors' model sets: fast kernels and Flexible All-to-All; everything else is Tutel's default.
fn tutel() -> Strategy {
    use crate::spec::{Encode, Layout};
    Strategy {
        name: "tutel".into(),
        encode: Encode::Sparse,
        layout: Layout::Flexible,
        ..Strategy::fairseq()
    }
}

fn run(name: &str, gpus: u64, phase: Phase, variant: &Variant) -> ModelStep {
    let hardware: Hardware = builtin("nd-a100-v4-80gb").unwrap();
    let prices = Analytic::new(&hardware).unwrap();
    let model = named(name);
    let run = ModelRun {
        model: &model,
        hardware: &hardware,
        prices: &prices,
        gpus,
        gpus_per_node: gpus.min(8),
        batch: model.batch,
        phase,
        shard_states: false,
    };
    step(&run, variant).unwrap()
}

#[test]
#[ignore = "prints"]
fn show() {
    for (gpus, rows) in [
        (8, [(291.0, 1198.0), (240.0, 507.0), (274.0, 1053.0)]),
        (32, [(288.0, 1195.0), (162.0, 455.0), (249.0, 892.0)]),
        (128, [(256.0, 1103.0), (146.0, 375.0), (226.0, 792.0)]),
    ] {
        let variants = [
            Variant::Dense,
            Variant::Moe(Strategy::fairseq()),
            Variant::Moe(tutel()),
        ];
        for (variant, (train, infer)) in variants.iter().zip(rows) {
            for (phase, published) in [(Phase::Training, train), (Phase::Forward, infer)] {
                let step = run("swinv2-moe-b", gpus, phase, variant);
                println!(
                    "{gpus:4} {:8} {phase:9} {:7.1} / {published:6} {:+.1}% mem {:.1} GiB exposed {} plans {:?}",
                    variant.name(),
                    step.rate_per_gpu,
                    100.0 * (step.rate_per_gpu / published - 1.0),
                    step.memory.total() as f64 / 1e9,
                    step.exposed_communication,
                    step.plans.iter().map(ToString::to_string).collect::<Vec<_>>(),
                );
                let shown: Vec<String> = step
                    .stages
                    .iter()
                    .map(|stage| format!("{} {}", stage.stage.name(), stage.busy))
                    .collect();
                println!("       {}", shown.join(", "));
            }
        }
    }
}
