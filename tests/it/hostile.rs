//! Input of every bad kind: one clear error, exit code 2, nothing half written.

use moeplan::error::Exit;
use moeplan_tests::{moeplan, moeplan_args};
use std::fs;
use std::path::Path;

/// `args` are refused with one line that holds all of `wanted`.
pub(crate) fn refused(args: &str, wanted: &[&str]) {
    let ran = moeplan(args);
    assert_eq!(
        ran.exit,
        Exit::BadInput,
        "{args}: {} {}",
        ran.stdout,
        ran.stderr
    );
    assert_eq!(ran.stdout, "", "{args}");
    for wanted in wanted {
        assert!(
            ran.stderr.contains(wanted),
            "{args}: expected `{wanted}` in {}",
            ran.stderr
        );
    }
}

/// As [`refused`], on one line.
fn refused_in_a_line(args: &str, wanted: &[&str]) {
    refused(args, wanted);
    let stderr = moeplan(args).stderr;
    assert_eq!(stderr.trim_end().lines().count(), 1, "{args}: {stderr}");
}

/// A study with `text` is refused, as `study.toml` and with all of `wanted`.
fn study_refused(text: &str, wanted: &[&str]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write(folder.path(), "study.toml", text);
    let output = folder.path().join("out.json");
    let args = [
        "simulate",
        "--config",
        &path,
        "--output",
        output.to_str().expect("UTF-8"),
    ];
    let ran = moeplan_args(&args);
    assert_eq!(
        ran.exit,
        Exit::BadInput,
        "{text}: {} {}",
        ran.stdout,
        ran.stderr
    );
    assert!(!output.exists(), "{text}");
    assert_eq!(
        ran.stderr.trim_end().lines().count(),
        1,
        "{text}: {}",
        ran.stderr
    );
    for wanted in wanted {
        assert!(
            ran.stderr.contains(wanted),
            "{text}: expected `{wanted}` in {}",
            ran.stderr
        );
    }
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).expect("a file in a temporary folder");
    path.display().to_string()
}

#[test]
fn numbers_out_of_range() {
    for (args, wanted) in [
        ("--tokens-per-step 0", "--tokens-per-step: expected 1 to"),
        ("--model-dim 0", "--model-dim"),
        ("--hidden-dim 18446744073709551615", "--hidden-dim"),
        ("--model-dim 4294967296 --hidden-dim 4294967296", "2^40"),
        ("--top-k 0", "--top-k: expected 1 to"),
        ("--top-k 99999", "--top-k: expected 1 to"),
        ("--top-k 2,99999", "--top-k: expected 1 to"),
        (
            "--capacity-factor NaN",
            "--capacity-factor: expected a number from",
        ),
        ("--capacity-factor inf", "--capacity-factor"),
        ("--capacity-factor -1e300", "--capacity-factor"),
        ("--experts-per-gpu NaN", "--experts-per-gpu"),
        ("--experts-per-gpu -1", "--experts-per-gpu"),
        ("--experts-per-gpu 1e300", "--experts-per-gpu"),
        ("--experts-per-gpu 0.3", "divide"),
        (
            "--num-experts 12 --gpus 16",
            "--num-experts: expected experts that divide over 16 GPUs",
        ),
        ("--num-experts 0", "--num-experts"),
        ("--gpus 0", "--gpus: expected 1 to 65536, found 0"),
        (
            "--gpus 1000000",
            "--gpus: expected 1 to 65536, found 1000000",
        ),
        ("--gpus 18446744073709551615", "--gpus"),
        (
            "--gpus 12",
            "--gpus: expected whole nodes of 8 GPUs, found 12",
        ),
        (
            "--gpus 16 --gpus-per-node 3",
            "--gpus-per-node: expected a divisor of the 16 GPUs, found 3",
        ),
        ("--gpus 16 --gpus-per-node 0", "--gpus-per-node"),
        (
            "--pipeline-degree 0",
            "--pipeline-degree: expected 1 to 256",
        ),
        ("--backward-degree 1000", "--backward-degree"),
        ("--adaptive-r 7", "--adaptive-r"),
        ("--steps 0", "--steps: expected 1 to"),
        ("--steps 99999999999", "--steps"),
        ("--threads 0", "--threads"),
        ("--routing zipf:NaN", "zipf"),
        ("--routing zipf:-1", "zipf"),
        ("--routing nonsense", "nonsense"),
        ("--trace-layer 3", "--trace-layer: expected a trace"),
        (
            "--trace digits --trace-layer 9 --gpus 16",
            "--trace-layer: expected a recorded layer (0, 1, 2), found 9",
        ),
        (
            "--trace nowhere.csv",
            "--trace: expected a shipped trace (digits, ",
        ),
        (
            "--layer nowhere",
            "--layer: expected paper, table2, swinv2-moe-b or a file",
        ),
        ("--cluster nowhere", "--cluster: expected nd-a100-v4-80gb"),
        (
            "--strategy nowhere",
            "--strategy: expected fairseq, tutel or a file",
        ),
        (
            "--gpus 65536 --padding dropless",
            "--padding: expected at most 16384 GPUs",
        ),
        ("--gpus 65536 --routing zipf:1", "ranks * experts"),
        ("--output /nowhere/at/all.json", "/nowhere/at/all.json"),
        ("--output /", "directory"),
        ("--config nowhere.toml", "nowhere.toml"),
        ("--layer nowhere.toml", "nowhere.toml"),
    ] {
        refused_in_a_line(&format!("simulate {args}"), &[wanted]);
    }
}

#[test]
fn flags_of_the_wrong_kind() {
    for (args, wanted) in [
        ("simulate --tokens-per-step -5", "-5"),
        ("simulate --tokens-per-step many", "many"),
        ("simulate --top-k 99999999999", "99999999999"),
        ("simulate --top-k 2,", "expected a number or numbers"),
        ("simulate --dtype fp64", "expected fp32, tf32, fp16"),
        ("simulate --encode fast", "expected dense, sparse"),
        ("simulate --gate angular", "expected linear, cosine"),
        ("simulate --gate cosine:0", "1 to 65536 channels"),
        ("simulate --all-to-all 4dh", "expected linear, 2dh"),
        (
            "simulate --experts-per-gpu 1 --num-experts 16",
            "cannot be used with",
        ),
        (
            "simulate --trace digits --routing zipf:1",
            "cannot be used with",
        ),
        ("simulate --no-such-flag", "--no-such-flag"),
        ("compare --ladder --strategy tutel", "cannot be used with"),
        ("no-such-command", "no-such-command"),
        ("collective all-to-some", "all-to-some"),
        ("kernel", "required"),
    ] {
        refused(args, &[wanted]);
    }
}

#[test]
fn study_files_are_told_by_line_and_field() {
    for (text, wanted) in [
        (
            "seed = 1\n[layer]\nmodel-dim = 0\n",
            vec!["study.toml:3: `layer.model-dim`: expected 1 to"],
        ),
        (
            "[layer]\nmodel-dims = 2\n",
            vec!["study.toml:2", "unknown field `model-dims`"],
        ),
        (
            "[layer]\ntop-k = -1\n",
            vec!["study.toml:2", "layer.top-k", "-1"],
        ),
        (
            "[layer]\ntop-k = 'two'\n",
            vec!["study.toml:2", "layer.top-k", "two"],
        ),
        (
            "[layer]\ntop-k = []\n",
            vec!["study.toml:2", "layer.top-k", "list of numbers"],
        ),
        (
            "[layer]\ntop-k = [2, -1]\n",
            vec!["study.toml:2", "layer.top-k", "-1"],
        ),
        (
            "[layer]\ncapacity-factor = nan\n",
            vec!["study.toml:2: `layer.capacity-factor`: expected", "NaN"],
        ),
        (
            "[layer]\ntop-k = 99999999999999999999\n",
            vec!["study.toml:2"],
        ),
        (
            "[layer]\ntop-k = 1\ntop-k = 2\n",
            vec!["study.toml:3", "duplicate"],
        ),
        ("[layer\n", vec!["study.toml:1"]),
        ("[layer]\nmodel-dim = 25", vec![]),
        (
            "[layer]\nexperts-per-gpu = 1\nnum-experts = 8\n",
            vec!["study.toml:3", "either"],
        ),
        (
            "[cluster]\ngpus = 1000000\n",
            vec!["study.toml:2: `cluster.gpus`: expected 1 to 65536"],
        ),
        (
            "[cluster]\npreset = 'cray'\n",
            vec!["study.toml:2: `cluster.preset`: expected nd-a100-v4-80gb"],
        ),
        (
            "[cluster]\npreset = 'dgx-a100'\nfile = 'x.toml'\n",
            vec!["study.toml:3", "either"],
        ),
        (
            "[[strategy]]\npolicy = 'magic'\n",
            vec!["study.toml:2", "strategy[0].policy", "static"],
        ),
        (
            "[[strategy]]\nbase = 'magic'\n",
            vec!["study.toml:2: `strategy[0].base`: expected fairseq"],
        ),
        (
            "[[strategy]]\nname = 'a'\nadaptive-r = 7\n",
            vec!["study.toml:3: `strategy[0].adaptive-r`: expected 0 or"],
        ),
        (
            "[[strategy]]\npipeline-degree = 0\n",
            vec!["study.toml:2: `strategy[0].pipeline-degree`"],
        ),
        (
            "[[strategy]]\ncapacity-factor = inf\n",
            vec!["study.toml:2: `strategy[0].capacity-factor`"],
        ),
        (
            "[[strategy]]\nname='a'\n[[strategy]]\nname='b'\n",
            vec!["study.toml:4", "expected one strategy, found 2"],
        ),
        (
            "ladder = true\n[[strategy]]\nname='a'\n",
            vec!["either `ladder` or `[[strategy]]`"],
        ),
        (
            "[routing]\nsteps = 0\n",
            vec!["study.toml:2: `routing.steps`: expected 1 to"],
        ),
        (
            "[routing]\ntrace = 'nowhere.csv'\n",
            vec!["study.toml:2: `routing.trace`"],
        ),
        (
            "[routing]\ntrace = 'digits'\nrouting = 'zipf:1'\n",
            vec!["study.toml:3: `routing.routing`: expected either"],
        ),
        (
            "[routing]\ntrace-top-k = 2\n",
            vec!["study.toml:2: `routing.trace-top-k`: expected a trace"],
        ),
        (
            "phase = 'sideways'\n",
            vec!["study.toml:1", "phase", "forward"],
        ),
        (
            "[output]\nformat = 'xml'\n",
            vec!["study.toml:2", "output.format"],
        ),
    ] {
        if wanted.is_empty() {
            continue;
        }
        study_refused(text, &wanted);
    }
}

#[test]
fn cluster_files_are_told_by_line_and_field() {
    let folder = tempfile::tempdir().unwrap();
    for (text, wanted) in [
        (
            "extends = 'nd-a100-v4-80gb'\n[gpu]\nmemory-gib = -1.0\n",
            "mine.toml:3: `gpu.memory-gib`: expected a number above 0",
        ),
        (
            "extends = 'nd-a100-v4-80gb'\n[gpu]\nmemory-gib = nan\n",
            "mine.toml:3: `gpu.memory-gib`",
        ),
        (
            "extends = 'nd-a100-v4-80gb'\n[gpu]\nmemory-gb = 80.0\n",
            "mine.toml:3: `gpu.memory-gb`: unknown field",
        ),
        (
            "extends = 'nd-a100-v4-80gb'\n[node]\ngpus = 0\n",
            "mine.toml:3: `node.gpus`: expected 1 to",
        ),
        (
            "extends = 'elsewhere'\n",
            "mine.toml:1: `extends`: expected",
        ),
        ("name = 'mine'\n", "mine.toml: missing field"),
        ("[gpu\n", "mine.toml:1"),
    ] {
        let path = write(folder.path(), "mine.toml", text);
        refused_in_a_line(&format!("simulate --gpus 16 --cluster {path}"), &[wanted]);
    }
}

#[test]
fn truncated_and_foreign_traces() {
    let folder = tempfile::tempdir().unwrap();
    let whole = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../traces/src/shipped/digits-moe.csv"
    ))
    .unwrap();
    for (name, text) in [
        ("cut.csv", &whole[..whole.len() / 2 + 3]),
        ("head.csv", &whole[..40]),
        ("empty.csv", ""),
        ("foreign.csv", "name,age\nada,36\n"),
        ("binary.csv", "\u{0}\u{1}\u{2}"),
    ] {
        let path = write(folder.path(), name, text);
        refused_in_a_line(&format!("simulate --gpus 16 --trace {path}"), &[name]);
    }
    let folder_itself = folder.path().display();
    refused_in_a_line(&format!("simulate --gpus 16 --trace {folder_itself}"), &[]);
}

#[test]
fn collectives_and_kernels() {
    let folder = tempfile::tempdir().unwrap();
    let ragged = write(folder.path(), "ragged.csv", "1,2\n3\n");
    let oblong = write(folder.path(), "oblong.csv", "1,2,3\n4,5,6\n");
    let zeros = write(folder.path(), "zeros.csv", "0,0\n0,0\n");
    let words = write(folder.path(), "words.csv", "1,two\n3,4\n");
    let square = write(folder.path(), "square.csv", "0,1\n1,0\n");
    for (args, wanted) in [
        ("collective all-to-all".to_owned(), "--bytes: expected a size"),
        ("collective all-to-all --bytes 0".into(), "--bytes: expected 1 to"),
        ("collective all-to-all --bytes 1MiB --gpus 1".into(), "--gpus: expected 2 to"),
        ("collective all-reduce --bytes 1MiB --algorithm 2dh".into(), "--algorithm"),
        ("collective all-to-all --bytes 1MiB --library nccl-0".into(), "--library: expected nccl-"),
        (format!("collective all-to-all --matrix {ragged}"), "ragged.csv:2"),
        (format!("collective all-to-all --matrix {oblong}"), "expected a square"),
        (format!("collective all-to-all --matrix {zeros}"), "only zeros"),
        (format!("collective all-to-all --matrix {words}"), "words.csv:1: expected bytes"),
        (format!("collective all-gather --matrix {square}"), "--matrix"),
        (format!("collective all-to-all --matrix {square} --gpus 4"), "--gpus: expected the 2 GPUs"),
        (format!("collective all-to-all --matrix {square} --bytes 1MiB"), "either"),
        (format!("collective all-to-all --bytes 1MiB --table {square}"), "square.csv"),
        ("kernel gemm --m 1 --n 1".into(), "--k: expected a number: gemm needs it"),
        ("kernel gemm --m 0 --n 1 --k 1".into(), "--m: expected 1 to"),
        ("kernel gemm --m 1 --n 1 --k 1 --batch 2".into(), "--batch: expected a setting of gemm"),
        (format!("kernel gemm --m 1 --n 1 --k 1 --table {square}"), "square.csv"),
        ("kernel encode --tokens-per-step 0 --model-dim 1 --num-experts 1".into(), "--tokens-per-step"),
        ("kernel encode --tokens-per-step 9 --model-dim 1 --num-experts 1".into(), "`top-k`: expected 1 to the 1 experts"),
        ("kernel moe-ffn --num-tokens 8 --hidden-size 8 --inter-size 8 --top-k 9 --num-experts 8".into(), "--top-k"),
        ("kernel moe-ffn --num-tokens 8 --hidden-size 8 --inter-size 8 --top-k 2 --num-experts 8 --ep 3".into(), "--ep"),
        ("kernel moe-ffn --num-tokens 8 --hidden-size 8 --inter-size 8 --top-k 2 --num-experts 8 --tp 3".into(), "--tp"),
        ("kernel moe-ffn --num-tokens 8 --hidden-size 8 --inter-size 8 --top-k 2 --num-experts 8 --alpha 1".into(), "--alpha"),
        ("breakdown --gpus 16 --step 1".into(), "--step: expected 0 to 0"),
    ] {
        refused_in_a_line(&args, &[wanted]);
    }
    refused("collective all-to-all --bytes 12parsecs", &["12parsecs"]);
    refused(
        "collective all-to-all --bytes 99999999999GiB",
        &["99999999999GiB"],
    );
}

#[test]
fn an_unwritable_result_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("missing").join("out.csv");
    let args = format!("simulate --gpus 16 --output {}", inside.display());
    refused_in_a_line(&args, &["missing"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn extreme_but_sound_settings_run() {
    for args in [
        "simulate --gpus 1",
        "simulate --gpus 1 --tokens-per-step 1 --model-dim 1 --hidden-dim 1 --num-experts 1 --top-k 1",
        "simulate --gpus 65536 --capacity-factor 0.0001",
        "simulate --gpus 16 --capacity-factor 1000000 --tokens-per-step 16",
        "simulate --gpus 16 --capacity-factor -1000000 --tokens-per-step 16",
        "simulate --gpus 16 --num-experts 1 --top-k 1 --adaptive-r 0",
        "simulate --gpus 16 --steps 3 --routing hot:1",
        "simulate --gpus 16 --tokens-per-step 1 --padding dropless --routing hot:1",
        "collective all-to-all --gpus 65536 --bytes 1",
        "collective all-reduce --gpus 2 --bytes 1125899906842624",
        "kernel gemm --m 16777216 --n 16777216 --k 16777216 --dtype fp32",
    ] {
        let ran = moeplan(args);
        assert!(
            matches!(ran.exit, Exit::Done | Exit::NoFeasiblePlan),
            "{args}: {}",
            ran.stderr
        );
    }
}
