//! `execute`, `calibrate`'s file and what a machine lacks.

use moeplan::error::Exit;
use moeplan_tests::moeplan;
use serde_json::Value;
use std::fs;

/// A step that runs in a blink.
const SMALL: &str =
    "execute --ranks 4 --tokens-per-step 32 --model-dim 16 --hidden-dim 24 --repeats 2";

fn json(args: &str) -> Value {
    let ran = moeplan(&format!("{args} --format json"));
    assert_eq!(ran.exit, Exit::Done, "{args}: {}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn a_step_is_run_and_shown_as_a_simulated_one() {
    let ran = json(SMALL);
    let run = &ran["runs"][0];
    assert!(run["step_time_ns"].as_u64().unwrap() > 0);
    for stage in ["gate", "encode", "dispatch", "expert", "combine", "decode"] {
        assert!(run["stages_ns"][stage].as_u64().unwrap() > 0, "{stage}");
        assert_eq!(run["provenance"][stage], "measured");
    }
    assert_eq!(ran["repeats"][0]["repeats"], 2);
    assert!(ran["repeats"][0]["flops"].as_u64().unwrap() > 0);
    let simulated = json("simulate --gpus 4 --tokens-per-step 32 --model-dim 16 --hidden-dim 24");
    let keys = |run: &Value| run.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(run), keys(&simulated["runs"][0]));
}

#[test]
fn traces_and_strategies_are_replayed() {
    let args = format!(
        "{SMALL} --trace digits --steps 3 --per-step --experts-per-gpu 0.5 --adaptive-r 2 --all-to-all 2dh \
         --gpus-per-node 2 --pipeline-degree 2"
    );
    let run = &json(&args)["runs"][0];
    assert_eq!(run["per_step"].as_array().unwrap().len(), 3);
    assert_eq!(run["chosen"]["adaptive_r"], 2);
    assert_eq!(run["chosen"]["all_to_all"], "2dh");
}

#[test]
fn a_cosine_gate_is_run_and_counted() {
    let flops = |args: &str| {
        let ran = json(&format!("{SMALL} {args}"));
        ran["repeats"][0]["flops"].as_u64().unwrap()
    };
    // Four ranks, 32 tokens, D = 16, E = 8, P = 12: (T, D, P) and (T, P, E) instead of (T, D, E), a product forward and two
    // backward. Products of experts are over all slots, whatever the gate.
    let (cosine, linear) = (32 * 12 * (16 + 8), 32 * 16 * 8);
    assert_eq!(
        flops("--gate cosine:12") - flops("--gate linear"),
        4 * 3 * 2 * (cosine - linear)
    );
}

#[test]
fn what_a_gate_does_beside_scoring_is_a_setting() {
    let run = |args: &str| json(&format!("{SMALL} --capacity-factor 0 {args}"));
    let factor = |ran: &Value| ran["runs"][0]["capacity_factor"].as_f64().unwrap();
    let (plain, noisy) = (run(""), run("--gate-noise 64"));
    assert_ne!(factor(&plain), factor(&noisy), "noise routes otherwise");
    let ordered = run("--batch-prioritized --balance-weight 0.5");
    assert_eq!(factor(&plain), factor(&ordered), "who comes first does not");
    let gate = &ordered["settings"]["gate"];
    assert_eq!(gate["batch-prioritized"], true);
    assert_eq!(gate["balance-weight"], 0.5);
    for flags in [
        "--gate-noise -1",
        "--gate-noise inf",
        "--balance-weight nan",
    ] {
        let ran = moeplan(&format!("{SMALL} {flags}"));
        assert_eq!(ran.exit, Exit::BadInput, "{flags}");
        let flag = flags.split(' ').next().unwrap();
        assert!(ran.stderr.contains(flag), "{}", ran.stderr);
    }
}

#[test]
fn a_machine_without_a_gpu_says_so_in_one_line() {
    let ran = moeplan(&format!("{SMALL} --backend cuda"));
    assert_eq!(ran.exit, Exit::MachineLacks);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("looked for libcuda.so"),
        "{}",
        ran.stderr
    );
}

#[test]
fn what_cannot_run_here_is_refused_in_one_line() {
    for (args, expected) in [
        ("--dtype bf16", "--dtype: expected fp32"),
        ("--tokens-per-step 4000000000", "GiB of memory available"),
        ("--dtype tf32", "--dtype: expected fp32"),
        ("--repeats 0", "--repeats: expected 1 to 10000"),
        (
            "--experts-per-gpu 0.25 --top-k 1 --hidden-dim 6",
            "expected a multiple of the 4 ranks",
        ),
    ] {
        let ran = moeplan(&format!("execute --ranks 4 --model-dim 16 {args}"));
        assert_eq!(ran.exit, Exit::BadInput, "{args}: {}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{args}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{args}: {}", ran.stderr);
    }
}

const CPU: &str = "\
extends = 'cpu-base'
name = 'four cores'
[cpu]
cores = 4
launch-us = [[1, 2.0], [8, 4.0]]
meeting-us = [[1, 1.0], [8, 20.0]]
sharing = [[1, 1.0], [16, 1.0]]
gemm-beside-copy = 0.9
copy-beside-gemm = 0.8
[cpu.gemm]
plain = { call-us = 1.0, multiply-add-ps = 50.0, left-ps = 100.0, right-ps = 100.0, result-ps = 100.0 }
right-transposed = { call-us = 1.0, multiply-add-ps = 50.0, left-ps = 100.0, right-ps = 100.0, result-ps = 100.0 }
left-transposed = { call-us = 1.0, multiply-add-ps = 50.0, left-ps = 100.0, right-ps = 100.0, result-ps = 100.0 }
[cpu.passes]
exchange = [[1000.0, 1.0], [1000000.0, 200.0]]
";

#[test]
fn a_calibrated_machine_is_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hw.toml");
    fs::write(&path, CPU).unwrap();
    let with = |args: &str| moeplan(&format!("{args} --cluster {}", path.display()));
    let step = |ranks: u64| {
        let ran = with(&format!(
            "simulate --gpus {ranks} --model-dim 256 --format json"
        ));
        assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
        let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
        answer["runs"][0]["step_time_ns"].as_u64().unwrap()
    };
    // Sixteen ranks on four cores take four turns.
    let ratio = step(16) as f64 / step(4) as f64;
    assert!((3.5..6.0).contains(&ratio), "{ratio}");
    let ran = with("collective all-to-all --gpus 4 --bytes 1048576");
    assert_eq!(ran.exit, Exit::BadInput);
    assert!(
        ran.stderr.contains("expected a cluster of GPUs"),
        "{}",
        ran.stderr
    );
    let table = folder.path().join("gemm.csv");
    fs::write(&table, "gemm_dtype,m,n,k,latency_ms\n").unwrap();
    let ran = with(&format!(
        "simulate --gpus 4 --gemm-table {}",
        table.display()
    ));
    assert_eq!(ran.exit, Exit::BadInput);
    assert!(
        ran.stderr.contains("--gemm-table: expected no table"),
        "{}",
        ran.stderr
    );
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    fs::write(&path, CPU.replace("cores = 4", "cores = 0")).unwrap();
    let ran = with("simulate --gpus 4");
    assert_eq!(ran.exit, Exit::BadInput);
    assert!(ran.stderr.contains("cpu.cores"), "{}", ran.stderr);
}

#[test]
fn calibrate_and_validate_are_settings_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("study.toml");
    let with = |text: &str, args: &str| {
        fs::write(&path, text).unwrap();
        let ran = moeplan(&format!("{args} --config {}", path.display()));
        assert_eq!(ran.exit, Exit::BadInput, "{text}: {}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        ran.stderr
    };
    let error = with("[calibrate]\nrepeats = 0\n", "calibrate");
    assert!(
        error.contains("study.toml:2: `calibrate.repeats`"),
        "{error}"
    );
    let error = with("[validate]\ntable = 'a.csv'\n", "validate");
    assert!(error.contains("study.toml:2: `validate.table`"), "{error}");
    let error = with("[validate]\ntable = 'a.csv'\nkind = 'gemm'\n", "validate");
    assert!(error.contains("a.csv"), "{error}");
    let error = with("[validate]\nstep = 3\n", "validate");
    assert!(error.contains("study.toml:2"), "{error}");
}
