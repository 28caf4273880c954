//! The rules of the house that a compiler does not check.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, tests left out.
const MOST_LINES: usize = 600;
/// Files that are longer, with the reason. Nobody adds to it without one.
const LONGER: [(&str, &str); 1] = [(
    "tools/src/validate/published.rs",
    "one table of published figures, read from top to bottom",
)];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Checks that `problems` is empty, and shows all of them where it is not.
fn check(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// Our crates that the manifest of `folder` depends on, by kind of dependency.
fn dependencies(folder: &str, kinds: &[&str]) -> BTreeSet<String> {
    let text = fs::read_to_string(repository().join(folder).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    let of_kind = |kind: &&str| manifest.get(*kind).and_then(toml::Value::as_table).cloned();
    kinds
        .iter()
        .filter_map(of_kind)
        .flat_map(|table| table.keys().cloned().collect::<Vec<_>>())
        .filter(|name| name.starts_with("moeplan"))
        .collect()
}

#[test]
fn crates_depend_in_one_direction() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("traces", &[][..]),
        ("sim", &["moeplan-traces"][..]),
        // Itself, with the host build on, for its own tests.
        ("kernels", &["moeplan-kernels"][..]),
        (
            "executor",
            &["moeplan-kernels", "moeplan-sim", "moeplan-traces"][..],
        ),
        (
            "executor/stand-in",
            // The whole program, for its tests.
            &[
                "moeplan",
                "moeplan-executor",
                "moeplan-kernels",
                "moeplan-sim",
                "moeplan-traces",
            ][..],
        ),
        (
            "tools",
            &["moeplan-executor", "moeplan-sim", "moeplan-traces"][..],
        ),
        ("tests", &["moeplan", "moeplan-sim", "moeplan-traces"][..]),
    ]);
    let text = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let workspace: toml::Table = text.parse().unwrap();
    let members: BTreeSet<&str> = workspace["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(toml::Value::as_str)
        .collect();
    assert_eq!(
        members,
        allowed.keys().copied().collect(),
        "state its arrows"
    );
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let mut problems = Vec::new();
    for (folder, allowed) in allowed {
        for found in dependencies(folder, &kinds) {
            if !allowed.contains(&found.as_str()) {
                problems.push(format!("{folder} depends on {found}"));
            }
        }
    }
    check(&problems);
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_source_file_is_longer_than_600_lines() {
    let mut problems = Vec::new();
    for folder in ["sim/src", "executor/src", "tools/src", "traces/src"] {
        let mut files = Vec::new();
        sources(&repository().join(folder), &mut files);
        assert!(!files.is_empty(), "no sources in {folder}");
        for file in files {
            let name = file
                .strip_prefix(repository())
                .unwrap()
                .display()
                .to_string();
            if name.ends_with("tests.rs") || LONGER.iter().any(|(known, _)| *known == name) {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            // Tests at the end of a file do not count.
            let lines = text.lines().take_while(|line| *line != "#[cfg(test)]");
            let lines = lines.count();
            if lines > MOST_LINES {
                problems.push(format!("{name} has {lines} lines"));
            }
        }
    }
    check(&problems);
}

/// Words in backticks that look like a path of the repository: a slash and no spaces, or a known
/// extension.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|word| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        let file = [".rs", ".toml", ".md", ".csv"];
        word.chars().all(plain)
            && !word.starts_with(['/', '.'])
            && (word.contains('/') || file.iter().any(|end| word.ends_with(end)))
    })
}

#[test]
fn the_architecture_names_files_that_exist() {
    let document = repository().join("docs/ARCHITECTURE.md");
    let Ok(text) = fs::read_to_string(&document) else {
        eprintln!("SKIPPED, NOTHING CHECKED: there is no docs/ARCHITECTURE.md");
        return;
    };
    let missing: Vec<String> = paths(&text)
        .filter(|path| !repository().join(path).exists())
        .map(|path| format!("docs/ARCHITECTURE.md names `{path}`"))
        .collect();
    check(&missing);
}

#[test]
fn paths_are_told_from_other_code() {
    let text =
        "see `sim/src/ir` and `tools/`, `Program`, `cargo test`, `a/b c`, `../shared`, `x.rs`";
    assert_eq!(
        paths(text).collect::<Vec<_>>(),
        ["sim/src/ir", "tools/", "x.rs"]
    );
}
