//! `model`, `balance` and `goodput` from the command line.

use crate::cli::{done, json};
use moeplan::error::Exit;
use moeplan_tests::{moeplan, moeplan_args};
use std::fs;

#[test]
fn a_model_reports_every_stage_and_what_was_published() {
    let ran = done("model swinv2-moe-b");
    for line in [
        "images/s a GPU",
        "attention",
        "all-reduce",
        "optimizer",
        "activations",
        "MFU",
    ] {
        assert!(ran.stdout.contains(line), "{line}: {}", ran.stdout);
    }
    assert!(ran.stdout.contains("published accuracy, not simulated"));
    let found = json("model swinv2-moe-b --phase forward --strategy dense --strategy tutel");
    assert_eq!(found["runs"].as_array().unwrap().len(), 2);
    assert_eq!(found["model"]["moe_layers"], 10);
    let stages = found["runs"][0]["stages_ns"].as_object().unwrap();
    assert_eq!(stages.keys().collect::<Vec<_>>(), ["attention", "dense"]);
}

#[test]
fn a_group_that_cannot_share_weights_is_one_clear_error() {
    for (args, expected) in [
        (
            "swinv2-moe-b --tensor-parallel 2",
            "of the 1 groups of heads",
        ),
        (
            "qwen3-235b-a22b --tensor-parallel 8 --gpus 16",
            "of the 4 groups of heads",
        ),
        (
            "mixtral-8x7b --tensor-parallel 8 --gpus 4",
            "of the 4 GPUs of a node",
        ),
        ("mixtral-8x7b --tensor-parallel 0 --gpus 8", "found 0"),
    ] {
        let ran = moeplan(&format!("model {args}"));
        assert_eq!(ran.exit, Exit::BadInput, "{args}");
        let told = ran.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            told.contains("--tensor-parallel") && told.contains(expected),
            "{args}: {told}"
        );
    }
}

#[test]
fn a_public_config_is_read_and_a_strange_one_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let config = include_str!("../../sim/src/model/configs/olmoe-1b-7b.json");
    fs::write(&path, config).unwrap();
    let file = path.to_str().unwrap();
    let args = ["model", "--model", file, "--gpus", "16", "--format", "json"];
    let ran = moeplan_args(&args);
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    fs::write(&path, config.replace("olmoe", "bert")).unwrap();
    let ran = moeplan_args(&args);
    assert_eq!(ran.exit, Exit::BadInput);
    assert!(
        ran.stderr
            .contains("config.json: `model_type`: expected mixtral"),
        "{}",
        ran.stderr
    );
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
}

#[test]
fn what_cannot_be_run_is_one_error() {
    for (args, said) in [
        ("model", "expected swinv2-moe-s"),
        ("model gpt-5", "expected swinv2-moe-s"),
        ("model swinv2-moe-b --gpus 24", "num-experts"),
        (
            "model swinv2-moe-b --batch 0",
            "--batch: expected 1 to 65536",
        ),
        ("model olmoe-1b-7b --sequence-length 0", "--sequence-length"),
        (
            "balance --gpus 16 --balance best",
            "--balance: expected static",
        ),
        ("balance --gpus 16 --every 0", "--every"),
        ("balance --gpus 16 --experts-per-gpu 0.5", "num-experts"),
        (
            "goodput --gpus 16 --slow-gpu 2",
            "--slow-gpu: expected a chance",
        ),
        ("goodput --gpus 16 --checkpoint-s 0", "--checkpoint-s"),
        ("goodput --gpus 16 --draws 0", "--draws"),
    ] {
        let ran = moeplan(args);
        assert_eq!(ran.exit, Exit::BadInput, "{args}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{args}: {}", ran.stderr);
        assert!(ran.stdout.is_empty());
    }
}

#[test]
fn balancing_evens_out_what_it_saw() {
    let found = json(
        "balance --gpus 16 --tokens-per-step 1024 --model-dim 256 --hidden-dim 256 --routing zipf:1.2 --steps 8 --every 2",
    );
    let runs = found["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 10);
    let load = |policy: &str| {
        let row = runs.iter().find(|row| row["policy"] == policy).unwrap();
        row["max_over_mean_load"].as_f64().unwrap()
    };
    assert!(load("eplb") < load("static"));
    assert_eq!(runs[0]["experts_moved"], 0);
}

#[test]
fn a_month_is_the_same_for_any_number_of_threads() {
    let args = "goodput --gpus 16 --tokens-per-step 512 --model-dim 256 --hidden-dim 256 --slow-gpu 0.05 --background 0.1 \
                --draws 200";
    let on = |threads: u32| done(&format!("{args} --format json --threads {threads}")).stdout;
    assert_eq!(on(1), on(3));
    let found = json(args);
    let goodput = &found["goodput"];
    let share = goodput["share"]["mean"].as_f64().unwrap();
    let expected = goodput["expected"].as_f64().unwrap();
    assert!((share / expected - 1.0).abs() < 0.02, "{share} {expected}");
}
