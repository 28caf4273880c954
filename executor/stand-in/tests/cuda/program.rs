//! The whole program on the CUDA backend: commands as a user gives them, their files read back.

use crate::process::Child;
use moeplan::error::Exit;
use moeplan::session::Streams;
use serde_json::Value;
use std::path::Path;

/// The case that runs a command line.
pub(crate) const CASE: &str = "program";

/// Runs the command line of `STAND_IN_ARGS`, in the process that a test started.
pub(crate) fn run() {
    let args = std::env::var("STAND_IN_ARGS").unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let streams = Streams {
        stdout: &mut stdout,
        stderr: &mut stderr,
        watched: false,
    };
    let exit = moeplan::run(std::iter::once("moeplan").chain(args.split(' ')), streams);
    assert_eq!(exit, Exit::Done, "{}", String::from_utf8_lossy(&stderr));
}

/// What `args` writes.
fn written(args: &str) -> Result<String, String> {
    written_on(Child::new(CASE), "1", args)
}

/// The same in a process of its own making, on a machine of `devices` GPUs.
fn written_on(child: Child<'_>, devices: &str, args: &str) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("answer");
    let args = format!("{args} --output {}", file.display());
    child.run(&[("STAND_IN_ARGS", &args), ("STAND_IN_DEVICES", devices)])?;
    Ok(std::fs::read_to_string(file).unwrap())
}

fn json(args: &str) -> Value {
    let text =
        written(&format!("{args} --format json")).unwrap_or_else(|why| panic!("{args}: {why}"));
    serde_json::from_str(&text).unwrap()
}

const SMALL: &str = "execute --backend cuda --ranks 2 --tokens-per-step 16 --model-dim 16 --hidden-dim 16 --repeats 1";

#[test]
fn execute_runs_in_every_number_type_and_names_the_device() {
    for dtype in ["fp32", "tf32", "fp16", "bf16"] {
        let ran = json(&format!("{SMALL} --dtype {dtype}"));
        assert_eq!(ran["backend"], "cuda");
        let place = ran["place"].as_str().unwrap();
        assert!(place.contains("stand-in (no GPU), sm_80"), "{place}");
        let run = &ran["runs"][0];
        for stage in ["gate", "encode", "dispatch", "expert", "combine", "decode"] {
            assert_eq!(run["provenance"][stage], "measured", "{dtype} {stage}");
        }
        assert!(ran["repeats"][0]["exchanged_bytes"].as_u64().unwrap() > 0);
    }
    // Half the bytes an element, half the bytes between ranks.
    let exchanged = |dtype: &str| {
        let ran = json(&format!("{SMALL} --dtype {dtype}"));
        ran["repeats"][0]["exchanged_bytes"].as_u64().unwrap()
    };
    assert_eq!(exchanged("fp32"), 2 * exchanged("bf16"));
    let gated = json(&format!("{SMALL} --dtype bf16 --gate cosine:24"));
    assert_eq!(gated["settings"]["layer"]["gate"], "cosine:24");
    let table = written(&format!("{SMALL} --ranks-apart")).unwrap();
    // Where lines break depends on the name of the machine's processor.
    let table = table.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(table.contains("stand-in (no GPU), sm_80"), "{table}");
    assert!(table.contains("one after the other"), "{table}");
    assert!(!table.contains("as threads"), "{table}");
}

#[test]
fn validate_executor_holds_a_gpu_against_its_prices() {
    let args = "validate executor --backend cuda --ranks 2 --steps 1 --repeats 1 --tokens-per-step 48 \
                --model-dim 32 --hidden-dim 40 --dtype bf16";
    let ran = json(args);
    assert_eq!(ran["machine"]["backend"], "cuda");
    assert!(ran["machine"]["place"].as_str().unwrap().contains("sm_80"));
    let cases = ran["cases"].as_array().unwrap();
    assert!(cases.len() >= 6, "{} cases", cases.len());
    for case in cases {
        for figure in ["measured_ns", "simulated_ns", "peak_bytes"] {
            assert!(case[figure].as_u64().unwrap() > 0, "{figure}: {case}");
        }
        // The memory model of the program and the device's allocations.
        let of = |name: &str| case[name].as_f64().unwrap();
        let ratio = of("peak_bytes") / of("peak_bytes_simulated");
        assert!(
            (0.85..1.15).contains(&ratio),
            "{}: {ratio}",
            case["strategy"]
        );
    }
    assert!(ran["summary"]["mape"].as_f64().unwrap() > 0.0);
}

/// Measurements of an H200 that a calibration left off with give the constants recorded beside them; the stand-in, which would
/// take hours, measures nothing.
#[test]
fn a_calibration_goes_on_from_what_was_measured() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/measured/h200");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gpu.toml");
    let partial = folder.path().join("gpu.toml.partial");
    std::fs::copy(recorded.join("calibrate.jsonl"), &partial).unwrap();
    let args = format!(
        "calibrate --backend cuda --repeats 1 --output {}",
        file.display()
    );
    Child::new(CASE).run(&[("STAND_IN_ARGS", &args)]).unwrap();
    assert!(!partial.exists());
    let constants = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        moeplan_sim::hardware::Hardware::from_toml(&text)
            .unwrap()
            .gpu
    };
    let (ours, theirs) = (constants(&file), constants(&recorded.join("gpu.toml")));
    let near = |what: &str, ours: f64, theirs: f64| {
        assert!(
            (ours / theirs - 1.0).abs() < 0.1,
            "{what}: {ours} against {theirs}"
        );
    };
    near("memory", ours.hbm_gb_per_s, theirs.hbm_gb_per_s);
    near("kernel", ours.kernel_us, theirs.kernel_us);
    near("FP32", ours.gemm.fp32_tflops, theirs.gemm.fp32_tflops);
    near("TF32", ours.gemm.tf32_tflops, theirs.gemm.tf32_tflops);
    near("BF16", ours.gemm.tensor_tflops, theirs.gemm.tensor_tflops);
}

#[test]
fn execute_takes_several_gpus() {
    let args = format!("{} --devices", SMALL.replace("--ranks 2", "--ranks 4"));
    let table = written_on(Child::new(CASE), "2", &format!("{args} 2")).unwrap();
    assert!(table.contains("ranks on 2 GPUs joined by NCCL"), "{table}");

    let why = written_on(Child::new(CASE).without_nccl(), "2", &format!("{args} 2")).unwrap_err();
    assert!(why.contains("left: MachineLacks"), "{why}");
    assert!(
        why.contains("--backend cuda: no CUDA backend: libnccl.so"),
        "{why}"
    );
    let why = written_on(Child::new(CASE), "2", &format!("{args} 4")).unwrap_err();
    assert!(why.contains("left: MachineLacks"), "{why}");
    assert!(
        why.contains("4 GPUs from number 0 on, where the machine has 2"),
        "{why}"
    );

    for (devices, expected) in [
        ("5", "at most one a rank, which are 4"),
        ("2 --ranks-apart", "1 where ranks run one after the other"),
        ("2 --backend cpu", "1, or --backend cuda"),
    ] {
        let args = args.replace(
            "--backend cuda ",
            if devices.ends_with("cpu") {
                ""
            } else {
                "--backend cuda "
            },
        );
        let why = written_on(Child::new(CASE), "8", &format!("{args} {devices}")).unwrap_err();
        assert!(
            why.contains("left: BadInput") && why.contains(expected),
            "{devices}: {why}"
        );
    }
}
