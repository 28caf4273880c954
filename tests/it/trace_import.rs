//! `trace import`: from a recording to a simulated step.

use moeplan::error::Exit;
use moeplan_tests::moeplan_args;
use std::fs;
use std::path::{Path, PathBuf};

/// 8 tokens of two layers, top-2 of 4 experts, for 2 ranks of 2 tokens.
fn recording(folder: &Path) -> String {
    let line = |token: u32, layer: u32| {
        let (first, second) = ((token + layer) % 4, (token + 2 + token % 2) % 4);
        let second = if first == second {
            (second + 1) % 4
        } else {
            second
        };
        format!(
            "{{\"layer\": {layer}, \"topk_ids\": [{first}, {second}], \"topk_weights\": [0.75, 0.25]}}\n"
        )
    };
    let text: String = (0..8)
        .flat_map(|token| [line(token, 0), line(token, 1)])
        .collect();
    let path = folder.join("routes.jsonl");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn import(input: &str, output: &Path, more: &[&str]) -> moeplan_tests::Ran {
    let output = output.display().to_string();
    let args = ["trace", "import", input, "--output", &output];
    moeplan_args(&[args.as_slice(), more].concat())
}

const SMALL: [&str; 4] = ["--trace-ranks", "2", "--trace-tokens", "2"];

#[test]
fn a_recording_becomes_either_face_and_is_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let input = recording(folder.path());
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let (csv, parquet) = (path("t.csv"), path("t.parquet"));
    let said = ["--model", "toy", "--licence", "CC0", "--format", "json"];
    let more = [SMALL.as_slice(), &said].concat();
    for output in [&csv, &parquet] {
        let ran = import(&input, output, &more);
        assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
        let found: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        let trace = &found["trace"];
        assert_eq!(trace["rows"], "tokens", "{trace}");
        assert_eq!((&trace["steps"], &trace["layers"]), (&2.into(), &2.into()));
        assert_eq!(trace["tokens"], 16);
        assert_eq!(trace["meta"]["experts"], 4);
        assert_eq!(trace["meta"]["tokens_per_rank"], 2);
    }
    let text = fs::read_to_string(&csv).unwrap();
    assert!(text.contains("# model: toy\n"), "{text}");
    assert!(
        text.contains(",token,expert0,expert1,score0,score1\n"),
        "{text}"
    );
    // One face from the other, byte by byte.
    let again = path("again.csv");
    let ran = import(&parquet.display().to_string(), &again, &[]);
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    assert_eq!(fs::read_to_string(&again).unwrap(), text);
    for packed in ["t.csv.gz", "t.csv.zst"] {
        let ran = import(&csv.display().to_string(), &path(packed), &[]);
        assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    }
    let simulate = |trace: &Path| {
        let trace = trace.display().to_string();
        let args = [
            "simulate",
            "--trace",
            &trace,
            "--gpus",
            "2",
            "--num-experts",
            "4",
            "--top-k",
            "2",
            "--tokens-per-step",
            "2",
            "--format",
            "csv",
        ];
        let ran = moeplan_args(&args);
        assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
        ran.stdout
    };
    let expected = simulate(&csv);
    for name in ["t.parquet", "t.csv.gz", "t.csv.zst"] {
        assert_eq!(simulate(&path(name)), expected, "{name}");
    }
}

#[test]
fn nothing_is_left_of_a_failed_import() {
    let folder = tempfile::tempdir().unwrap();
    let input = recording(folder.path());
    let refused = |input: &str, output: &str, more: &[&str], words: &[&str]| {
        let before = fs::read_dir(folder.path()).unwrap().count();
        let ran = import(input, &folder.path().join(output), more);
        assert_eq!(ran.exit, Exit::BadInput, "{}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.stdout, "");
        assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{}", ran.stderr);
        for word in words {
            assert!(ran.stderr.contains(word), "{word} in {}", ran.stderr);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), before);
    };
    refused(
        &input,
        "t.csv",
        &[],
        &["routes.jsonl", "at least 64 tokens"],
    );
    refused(&input, "t.xlsx", &SMALL, &["--output", ".parquet"]);
    refused(
        &input,
        "t.csv",
        &["--axes", "step,lair"],
        &["--axes", "lair"],
    );
    refused(
        &input,
        "t.csv",
        &["--assign", "evenly"],
        &["--assign", "evenly"],
    );
    refused(
        &input,
        "t.csv",
        &["--trace-ranks", "0"],
        &["source_ranks", "at least 1"],
    );
    refused("nothing.pt", "t.csv", &[], &["nothing.pt"]);
    let broken = folder.path().join("broken.jsonl");
    fs::write(
        &broken,
        "{\"topk_ids\": [1, 2]}\n{\"topk_ids\": [1, 1e18]}\n",
    )
    .unwrap();
    refused(
        &broken.display().to_string(),
        "t.csv",
        &SMALL,
        &["broken.jsonl:2: `ids`"],
    );
}
