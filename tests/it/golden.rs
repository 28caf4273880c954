//! The accuracy gate: published and measured figures beside ours, no worse than recorded.

use moeplan::error::Exit;
use moeplan::session::Streams;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The measured tables, which are not ours to commit: `$MOEPLAN_DATA`, or `shared/data` beside the
/// repository.
fn data() -> Option<PathBuf> {
    let named = std::env::var_os("MOEPLAN_DATA").map(PathBuf::from);
    let data = named.unwrap_or_else(|| repository().join("../shared/data"));
    data.join("calibration").is_dir().then_some(data)
}

/// Runs `moeplan validate` with `arguments` and returns its JSON; its exit code says whether
/// anything is worse than recorded.
fn check(arguments: &[&str]) -> Value {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let streams = Streams {
        stdout: &mut stdout,
        stderr: &mut stderr,
        watched: false,
    };
    let fixed = ["moeplan", "validate", "--format", "json"];
    let exit = moeplan::run(fixed.iter().chain(arguments), streams);
    let told = String::from_utf8_lossy(&stderr).into_owned();
    let answer: Value = serde_json::from_slice(&stdout).unwrap_or_else(|error| {
        panic!("validate wrote no JSON ({error}): {told}");
    });
    assert_eq!(exit, Exit::Done, "{:#}\n{told}", answer["summary"]);
    assert_eq!(
        answer["summary"]["worse_than_recorded"],
        Value::Array(vec![])
    );
    answer
}

#[test]
fn no_figure_is_worse_than_recorded_and_the_document_is_of_today() {
    let folder = tempfile::tempdir().unwrap();
    let written = folder.path().join("VALIDATION.md");
    let mut arguments = vec!["--markdown", written.to_str().unwrap()];
    let data = data();
    match &data {
        Some(data) => arguments.extend(["--data", data.to_str().unwrap()]),
        None => eprintln!(
            "SKIPPED, NOTHING CHECKED against measured tables: neither $MOEPLAN_DATA nor \
             ../shared/data is there"
        ),
    }
    let answer = check(&arguments);
    let count = |key: &str| answer["summary"][key].as_u64().unwrap_or(0);
    assert!(count("predicted") + count("fitted") >= 30, "{answer:#}");
    if data.is_some() {
        let tables = answer["summary"]["tables"].as_array().unwrap();
        assert!(tables.len() >= 4, "{tables:?}");
    }
    let committed = repository().join("docs/VALIDATION.md");
    match std::fs::read_to_string(&committed) {
        Ok(committed) => assert!(
            committed == std::fs::read_to_string(&written).unwrap(),
            "docs/VALIDATION.md is stale: run `cargo run --release -- validate --data DIR \
             --markdown docs/VALIDATION.md`"
        ),
        Err(_) => eprintln!("SKIPPED, NOTHING CHECKED: there is no docs/VALIDATION.md"),
    }
}

#[test]
fn the_readme_shows_what_the_main_job_prints_today() {
    let ran = moeplan_tests::moeplan_args(&[]);
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    assert!(
        readme.contains(ran.stdout.trim_end()),
        "README.md is stale, the main job prints:\n{}",
        ran.stdout
    );
}
