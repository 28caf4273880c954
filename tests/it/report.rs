//! `report`: what is in the file, and how a browser shows it.

use moeplan::error::Exit;
use moeplan_tests::moeplan_args;
use std::fs;
use std::path::Path;
use std::process::Command;

const STUDY: &str = "report --gpus 64 --steps 4";

fn report(args: &str, output: &Path, more: &[&str]) {
    let output = output.display().to_string();
    let args: Vec<&str> = args.split_whitespace().collect();
    let ran = moeplan_args(&[&args[..], &["--output", &output], more].concat());
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
}

#[test]
fn a_study_is_one_file_and_its_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let (page, again) = (
        folder.path().join("r.html"),
        folder.path().join("again.html"),
    );
    let assets = folder.path().join("assets");
    report(STUDY, &page, &["--assets", &assets.display().to_string()]);
    report(STUDY, &again, &[]);
    let html = fs::read_to_string(&page).unwrap();
    assert_eq!(
        html,
        fs::read_to_string(&again).unwrap(),
        "same input, same bytes"
    );
    assert!(html.len() < 2_000_000, "{} bytes", html.len());
    for outside in ["src=\"http", "href=\"http", "@import", "url(http"] {
        assert!(!html.contains(outside), "{outside} needs a network");
    }
    for part in [
        "fairseq",
        "tutel",
        "digits",
        "seed",
        "Published figures beside ours",
        "gpus = 64",
    ] {
        assert!(html.contains(part), "{part} is missing");
    }
    for figure in ["step-time", "stages", "memory", "scale"] {
        let svg = fs::read_to_string(assets.join(format!("{figure}.svg"))).unwrap();
        assert!(svg.contains("</svg>") && html.contains(&format!("id=\"{figure}\"")));
        let png = fs::read(assets.join(format!("{figure}.png"))).unwrap();
        assert!(png.starts_with(b"\x89PNG"), "{figure} is no picture");
        let csv = fs::read_to_string(assets.join(format!("{figure}.csv"))).unwrap();
        assert!(csv.lines().count() > 1, "{figure}: {csv}");
    }
}

/// The numbers are those of `compare`.
#[test]
fn a_report_says_what_compare_says() {
    let folder = tempfile::tempdir().unwrap();
    let assets = folder.path().join("assets");
    let page = folder.path().join("r.html");
    report(STUDY, &page, &["--assets", &assets.display().to_string()]);
    let args = "compare --gpus 64 --steps 4 --trace digits --format json";
    let args: Vec<&str> = args.split_whitespace().collect();
    let compared: serde_json::Value =
        serde_json::from_str(&moeplan_args(&args).stdout).expect("JSON");
    let table = fs::read_to_string(assets.join("strategies.csv")).unwrap();
    for run in compared["runs"].as_array().unwrap() {
        let strategy = run["strategy"].as_str().unwrap();
        let row = table
            .lines()
            .find(|line| line.starts_with(strategy))
            .unwrap();
        let time: u64 = row.split(',').nth(1).unwrap().parse().unwrap();
        assert_eq!(Some(time), run["step_time_ns"].as_u64());
    }
}

#[test]
fn the_papers_figures_mark_what_was_published() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("p.html");
    let assets = folder.path().join("assets");
    report(
        "report paper",
        &page,
        &["--assets", &assets.display().to_string()],
    );
    let html = fs::read_to_string(&page).unwrap();
    let figures = [
        "figure-1",
        "figure-3",
        "figure-5",
        "fig12-base",
        "figure-13",
        "figure-14",
        "figure-15",
        "figure-16a",
        "figure-16b",
        "figure-18-1",
    ];
    for figure in figures {
        assert!(html.contains(&format!("id=\"{figure}\"")), "{figure}");
        for kind in ["svg", "png", "csv"] {
            assert!(
                assets.join(format!("{figure}.{kind}")).exists(),
                "{figure}.{kind}"
            );
        }
    }
    // The numbers of a figure and the published ones beside it are files of their own.
    let numbers = fs::read_to_string(assets.join("figure-13.csv")).unwrap();
    assert!(numbers.starts_with("capacity factor,16 GPUs"), "{numbers}");
    assert!(assets.join("published-figure-13.csv").exists());
    for table in ["2", "5", "6", "7"] {
        assert!(html.contains(&format!("Table {table}")), "table {table}");
    }
    assert!(html.contains(">published</text>") || html.contains("published\n</text>"));
}

#[test]
fn what_cannot_be_reported_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("r.html");
    let output = page.display().to_string();
    let ran = moeplan_args(&["report", "--gpus", "0", "--output", &output]);
    assert_eq!(ran.exit, Exit::BadInput, "{}", ran.stderr);
    assert!(!page.exists());
}

/// In Chromium, on a phone and on a desk: no message, no request, plots to be seen, tables that sort.
#[test]
fn a_browser_shows_it() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("r.html");
    report(STUDY, &page, &[]);
    let modules = std::env::var("MOEPLAN_PLAYWRIGHT").unwrap_or_default();
    let chromium = std::env::var("CHROMIUM").unwrap_or("/usr/bin/chromium".into());
    if !Path::new(&modules).join("playwright-core").exists() || !Path::new(&chromium).exists() {
        eprintln!(
            "SKIPPED LOUDLY: the report was not opened in a browser (set MOEPLAN_PLAYWRIGHT to a \
             node_modules with playwright-core, CHROMIUM to the browser; .ci/run does)"
        );
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("check_report.mjs");
    let ran = Command::new("node")
        .args([script.as_path(), &page])
        .env("NODE_PATH", &modules)
        .env("CHROMIUM", &chromium)
        .output()
        .expect("node");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
}
