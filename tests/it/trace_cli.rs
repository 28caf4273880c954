//! `moeplan trace`: what it prints, writes and refuses.

use crate::cli::{done, json};
use crate::hostile::refused;
use moeplan_tests::moeplan;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A file of `folder`.
fn at(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

/// A small trace of `spec` and what was said about it.
fn generated(folder: &TempDir, name: &str, spec: &str) -> (String, String) {
    let path = at(folder, name);
    let shape = "--gpus 4 --num-experts 16 --tokens-per-step 256 --steps 24 --layers 2 --seed 3";
    let said = done(&format!("trace generate {spec} {shape} --output {path}")).stdout;
    (path, said)
}

/// `text` without the folder of this run.
fn neutral(folder: &TempDir, text: &str) -> String {
    text.replace(&folder.path().display().to_string(), "FOLDER")
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("a number, not {value}"))
}

#[test]
fn help_of_every_command() {
    for command in [
        "stats", "diff", "generate", "resample", "import", "study", "list",
    ] {
        let help = done(&format!("trace {command} --help")).stdout;
        insta::assert_snapshot!(format!("help-trace-{command}"), help);
    }
}

/// Every figure is drawn from integers and computed by `libm`: these tables are the same everywhere.
#[test]
fn tables() {
    let folder = folder();
    let (first, said) = generated(&folder, "a.csv", "zipf:1.2,phase=12,domains=2,affinity=0.6");
    let (second, _) = generated(&folder, "b.csv", "w6");
    let resampled = at(&folder, "c.csv");
    let shown = [
        ("generate", said),
        (
            "stats",
            done(&format!("trace stats {first} --per-step --layer 1")).stdout,
        ),
        ("diff", done(&format!("trace diff {first} {second}")).stdout),
        (
            "resample",
            done(&format!(
                "trace resample {first} --gpus 8 --num-experts 32 --steps 6 --output {resampled}"
            ))
            .stdout,
        ),
        ("list", done("trace list").stdout),
    ];
    for (name, table) in shown {
        let table = neutral(&folder, &table);
        for line in table.lines() {
            assert!(line.chars().count() <= 120, "{name}: {line}");
        }
        insta::assert_snapshot!(format!("table-trace-{name}"), table);
    }
}

#[test]
fn json_and_csv_say_the_same() {
    let folder = folder();
    let (path, _) = generated(&folder, "a.csv", "dirichlet:0.5,drift=0.2");
    let document = json(&format!(
        "trace stats {path} --per-step --capacity-factor 1.5 --lag 3"
    ));
    assert_eq!(document["command"], "trace stats");
    assert_eq!(document["trace"]["experts"], 16);
    assert_eq!(document["layers"].as_array().unwrap().len(), 2);
    assert!(document["layers"][0]["autocorrelation"]["3"].is_f64());
    let steps = document["per_step"].as_array().unwrap();
    assert_eq!(steps.len(), 48);
    let text = done(&format!(
        "trace stats {path} --per-step --capacity-factor 1.5 --format csv"
    ))
    .stdout;
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().unwrap().clone();
    let column = |name: &str| header.iter().position(|found| found == name).unwrap();
    for (row, step) in reader.records().zip(steps) {
        let row = row.unwrap();
        let cell = |name: &str| row[column(name)].parse::<f64>().unwrap();
        assert_eq!(cell("gini"), number(&step["gini"]));
        assert_eq!(cell("dropped.1.5"), number(&step["dropped"]["1.5"]));
    }
    let layers = done(&format!("trace stats {path} --format csv")).stdout;
    assert!(
        layers
            .lines()
            .next()
            .unwrap()
            .contains("needed_capacity_factor.max")
    );
    assert_eq!(layers.lines().count(), 3);
}

#[test]
fn the_same_seed_writes_the_same_bytes() {
    let folder = folder();
    let bytes = |name: &str, seed: u64, threads: usize| {
        let path = at(&folder, name);
        done(&format!(
            "trace generate zipf:1.1,capacity=1.5..5,over=10,balance=50 --steps 8 --layers 3 --gpus 3 \
             --seed {seed} --threads {threads} --output {path}"
        ));
        fs::read_to_string(path).unwrap()
    };
    assert_eq!(bytes("a.csv", 1, 1), bytes("b.csv", 1, 2));
    assert_ne!(bytes("a.csv", 1, 1), bytes("b.csv", 2, 1));
}

#[test]
fn a_specification_routes_a_simulation_as_its_trace_does() {
    let folder = folder();
    let layer = "--gpus 16 --tokens-per-step 512 --num-experts 32 --top-k 2";
    let small = "--model-dim 256 --hidden-dim 256 --padding dropless";
    for spec in [
        "zipf:1.2,drift=0.1,domains=4",
        "w7",
        "power:1.5,burst=2",
        "w4",
    ] {
        let path = at(&folder, "routing.csv");
        done(&format!(
            "trace generate {spec} {layer} --steps 3 --seed 9 --output {path}"
        ));
        let direct = json(&format!(
            "simulate {layer} {small} --routing {spec} --steps 3 --seed 9"
        ));
        let replayed = json(&format!(
            "simulate {layer} {small} --trace {path} --steps 3 --seed 9"
        ));
        for key in ["step_time_ns", "capacity_factor_max"] {
            // Ranks that differ in tokens have no shape to replay as recorded.
            if spec != "w4" {
                assert_eq!(direct["runs"][0][key], replayed["runs"][0][key], "{spec}");
            }
        }
    }
}

#[test]
fn a_trace_like_another_is_like_it() {
    let folder = folder();
    let path = at(&folder, "like.csv");
    for name in ["digits", "text"] {
        let document = json(&format!("trace generate --like {name} --output {path}"));
        let pairs = document["recorded"].as_array().unwrap().iter();
        for (recorded, made) in pairs.zip(document["layers"].as_array().unwrap()) {
            let ratio = |keys: [&str; 2]| {
                number(&made[keys[0]][keys[1]]) / number(&recorded[keys[0]][keys[1]])
            };
            for (keys, least, most) in [
                (["needed_capacity_factor", "mean"], 0.9, 1.1),
                (["needed_capacity_factor", "max"], 0.75, 1.4),
                (["coefficient_of_variation", "mean"], 0.95, 1.05),
                (["source_divergence", "mean"], 0.9, 1.3),
                (["autocorrelation", "1"], 0.8, 1.2),
            ] {
                let ratio = ratio(keys);
                assert!((least..most).contains(&ratio), "{name} {keys:?}: {ratio}");
            }
            let coupling = |of: &Value| of["coupling_to_previous"].as_f64().unwrap_or(1.0);
            assert!((coupling(recorded) - coupling(made)).abs() < 0.1, "{name}");
        }
        for layer in document["distance"].as_array().unwrap() {
            assert!(number(&layer["total_variation"]) < 0.03, "{name}: {layer}");
        }
    }
    // Longer, and for more ranks than were recorded.
    done(&format!(
        "trace generate --like digits --gpus 40 --steps 250 --tokens-per-step 128 --output {path}"
    ));
    let document = json(&format!("trace stats {path}"));
    assert_eq!(document["trace"]["source_ranks"], 40);
    assert_eq!(document["layers"][2]["steps"], 250);
}

#[test]
fn joint_counts_lead_from_layer_to_layer() {
    let folder = folder();
    let joint = at(&folder, "joint.csv");
    // Experts swap in pairs: 0 and 1, 2 and 3.
    fs::write(
        &joint,
        "0,\"(0, 1)\",9\n0,\"(1, 0)\",9\n0,\"(2, 3)\",9\n0,\"(3, 2)\",9\n",
    )
    .unwrap();
    let path = at(&folder, "a.csv");
    done(&format!(
        "trace generate zipf:1 --joint {joint} --top-k 1 --steps 1 --output {path}"
    ));
    let document = json(&format!("trace stats {path}"));
    let shares =
        |layer: usize, expert: usize| number(&document["layers"][layer]["mean_shares"][expert]);
    for expert in 0..4 {
        let (before, after) = (shares(0, expert ^ 1), shares(1, expert));
        assert!((before - after).abs() < 0.01, "{expert}: {before} {after}");
    }
}

#[test]
fn resampling_keeps_shares_and_says_so() {
    let folder = folder();
    let path = at(&folder, "more.csv");
    let document = json(&format!(
        "trace resample digits --gpus 64 --tokens-per-step 4096 --steps 3 --layer 2 --output {path}"
    ));
    assert!(
        document["kept"]
            .as_str()
            .unwrap()
            .contains("how ranks differ")
    );
    let distance = json(&format!("trace diff {path} digits --layer 2"));
    // Three steps of a hundred, so only about the same mean.
    assert!(number(&distance["distance"][0]["total_variation"]) < 0.2);
    let text = fs::read_to_string(&path).unwrap();
    for wanted in [
        "# source_ranks: 64",
        "# tokens_per_rank: 4096",
        "note: kept:",
        "note: assumed:",
    ] {
        assert!(text.contains(wanted), "{wanted}");
    }
    // What is not changed stays as recorded, byte by byte below the header.
    let same = at(&folder, "same.csv");
    done(&format!("trace resample digits --output {same}"));
    let rows = |text: String| {
        let rows = text.lines().filter(|line| !line.starts_with('#'));
        rows.map(str::to_owned).collect::<Vec<_>>()
    };
    let recorded =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../traces/src/shipped/digits-moe.csv");
    assert_eq!(
        rows(fs::read_to_string(same).unwrap()),
        rows(fs::read_to_string(recorded).unwrap())
    );
}

#[test]
fn a_study_writes_its_page_and_plots() {
    let folder = folder();
    let page = at(&folder, "SKEW.md");
    let document = json(&format!(
        "trace study --gpus 16 --steps 1 --markdown {page}"
    ));
    let points = document["points"].as_array().unwrap();
    // Five traces of three layers, in three modes.
    assert_eq!(points.len(), 45);
    for point in points {
        let ratio = number(&point["static_ns"]) / number(&point["adaptive_ns"]);
        assert!((ratio - number(&point["gain"])).abs() < 1e-9);
        if point["mode"] != "factor-one" {
            assert_eq!(point["dropped_fraction"], 0.0);
        }
    }
    let text = fs::read_to_string(&page).unwrap();
    for plot in [
        "needed-capacity",
        "gain-factor-one",
        "gain-covering",
        "gain-dropless",
    ] {
        assert!(text.contains(&format!("skew/{plot}.svg")), "{plot}");
        let svg = fs::read_to_string(folder.path().join(format!("skew/{plot}.svg"))).unwrap();
        assert!(svg.starts_with("<svg") && svg.len() < 100_000, "{plot}");
    }
}

#[test]
fn settings_come_from_a_file_too() {
    let folder = folder();
    let study = at(&folder, "study.toml");
    fs::write(
        &study,
        "seed = 4\n[trace]\ncapacity-factor = [3.0]\nlag = [5]\n[trace-shape]\ngpus = 2\nsteps = 9\n",
    )
    .unwrap();
    let path = at(&folder, "a.csv");
    let document = json(&format!(
        "trace generate zipf:1 --config {study} --steps 7 --output {path}"
    ));
    assert_eq!(document["seed"], 4);
    assert_eq!(document["trace"]["source_ranks"], 2);
    assert_eq!(document["layers"][0]["steps"], 7);
    assert!(document["layers"][0]["dropped"]["3"].is_f64());
    assert!(document["layers"][0]["autocorrelation"].get("5").is_some());
}

#[test]
fn hostile_input_is_refused_and_leaves_nothing() {
    let folder = folder();
    let out = at(&folder, "out.csv");
    let output = format!("--output {out}");
    let cut = at(&folder, "cut.csv");
    fs::write(&cut, "# format: moeplan-trace/1\n# model: x\n# experts: 4").unwrap();
    let joint = at(&folder, "joint.csv");
    fs::write(&joint, "0,\"(0, 1)\",5\n0,\"(9, x)\",5\n").unwrap();
    let config = at(&folder, "study.toml");
    fs::write(&config, "[trace]\nlag = [0]\n").unwrap();
    for (args, wanted) in [
        (
            "trace generate zipf:1".to_owned(),
            "--output: expected a file",
        ),
        (
            format!("trace generate zipf:-1 {output}"),
            "expected an exponent from 0 to 10",
        ),
        (
            format!("trace generate zipf:1,drift=NaN {output}"),
            "`drift`",
        ),
        (format!("trace generate w9 {output}"), "`popularity`"),
        (
            format!("trace generate zipf:1,capacity=9..1 {output}"),
            "`capacity`",
        ),
        (
            format!("trace generate zipf:1,domains=99999999999 {output}"),
            "`domains`",
        ),
        (format!("trace generate {output}"), "required"),
        (
            format!("trace generate zipf:1 --like digits {output}"),
            "cannot be used",
        ),
        (
            format!("trace generate zipf:1 --gpus 0 {output}"),
            "--gpus: expected at least 1",
        ),
        (
            format!("trace generate zipf:1 --top-k 99 {output}"),
            "--top-k: expected 1 to 32",
        ),
        (
            format!("trace generate zipf:1 --gpus 999999 --num-experts 999999 {output}"),
            "--gpus: expected ranks * experts",
        ),
        (
            format!("trace generate zipf:1 --steps 0 {output}"),
            "--steps: expected 1 to",
        ),
        (
            format!("trace generate zipf:1 --layers 0 {output}"),
            "--layers: expected 1 to",
        ),
        (
            format!("trace generate zipf:1 --layers 99999 {output}"),
            "--layers: expected 1 to",
        ),
        (
            format!("trace generate zipf:1 --layer 1 {output}"),
            "--layer: expected a setting of --like",
        ),
        (
            format!("trace generate zipf:1 --joint {joint} {output}"),
            "joint.csv:2",
        ),
        (
            format!("trace generate zipf:1 --joint missing.csv {output}"),
            "missing.csv",
        ),
        (
            format!("trace generate --like digits --num-experts 64 {output}"),
            "--num-experts: expected that of the trace",
        ),
        (format!("trace generate --like {cut} {output}"), "cut.csv"),
        (
            format!("trace generate --like nothing {output}"),
            "--like: expected a shipped trace",
        ),
        (
            format!("trace resample digits --steps 101 {output}"),
            "--steps: expected 1 to the 100",
        ),
        (
            format!("trace resample digits --top-k 33 {output}"),
            "--top-k: expected 1 to 32",
        ),
        (
            format!("trace resample digits --tokens-per-step 0 {output}"),
            "--tokens-per-step: expected at least 1",
        ),
        (
            format!("trace resample digits --layers 2 {output}"),
            "--layers: expected a setting of `trace generate`",
        ),
        ("trace resample digits".into(), "--output: expected a file"),
        (
            "trace stats digits --layer 3".into(),
            "--layer: expected a recorded layer (0, 1, 2), found 3",
        ),
        (
            "trace stats digits --capacity-factor 0".into(),
            "--capacity-factor: expected a number above 0",
        ),
        (
            "trace stats digits --capacity-factor inf".into(),
            "--capacity-factor",
        ),
        (
            "trace stats digits --lag 0".into(),
            "--lag: expected at least 1",
        ),
        (
            format!("trace stats digits --config {config}"),
            "study.toml:2: `trace.lag`",
        ),
        (format!("trace stats {cut}"), "cut.csv:3"),
        ("trace stats nothing".into(), "expected a shipped trace"),
        (
            "trace diff digits nothing".into(),
            "expected a shipped trace",
        ),
        (
            "trace study --steps 0".into(),
            "--steps: expected at least 1",
        ),
        ("trace study --gpus 12".into(), "gpus"),
    ] {
        refused(&args, &[wanted]);
        assert!(!Path::new(&out).exists(), "{args}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn an_unwritable_trace_is_refused_before_it_is_made() {
    let ran = moeplan("trace generate zipf:1 --steps 1000000 --output /no/such/folder/out.csv");
    assert_eq!(ran.exit, moeplan::error::Exit::BadInput, "{}", ran.stderr);
}

/// Statistics against numpy and scipy, by a script that shares no code with moeplan.
#[test]
fn numpy_finds_the_same_numbers() {
    let numpy = Command::new("python3")
        .args(["-c", "import numpy"])
        .output();
    if !numpy.is_ok_and(|ran| ran.status.success()) {
        eprintln!("SKIPPED, NOTHING CHECKED: statistics against numpy need python3 with numpy");
        return;
    }
    let folder = folder();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("check_trace_stats.py");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../traces/src/shipped");
    let mut traces = vec![
        shipped.join("digits-moe.csv").display().to_string(),
        shipped.join("text-top1-moe.csv").display().to_string(),
    ];
    for (name, spec) in [
        ("phases.csv", "dirichlet:0.05,phase=8,domains=3"),
        ("ragged.csv", "hot:0.9,ragged=1"),
        ("even.csv", "uniform"),
    ] {
        traces.push(generated(&folder, name, spec).0);
    }
    for trace in traces {
        let stats = at(&folder, "stats.json");
        done(&format!(
            "trace stats {trace} --per-step --capacity-factor 1 --capacity-factor 1.1 --capacity-factor 4 \
             --lag 1 --lag 7 --lag 1000 --format json --output {stats}"
        ));
        let ran = Command::new("python3")
            .arg(&script)
            .arg(&trace)
            .arg(&stats)
            .output()
            .unwrap();
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr)
        );
        assert!(ran.status.success(), "{trace}: {said}");
        assert!(said.contains("numbers agree"), "{said}");
    }
}

/// Third-party captures, where they are at hand.
#[expect(clippy::print_stderr, reason = "what is not checked must be said")]
fn captures() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let data = std::env::var_os("MOEPLAN_DATA").map_or(beside, PathBuf::from);
    let folder = data.join("traces");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!(
        "SKIPPED, NOTHING CHECKED: no captures in {}",
        folder.display()
    );
    None
}

/// As published with the captures: the busiest expert has 2.5 to 7.8 times the mean load in OLMoE
/// by domain and layer, 1.1 to 1.3 times in Mixtral.
#[test]
fn captures_are_as_skewed_as_published() {
    let Some(folder) = captures() else { return };
    for (model, top_k, published) in [("olmoe", 8, (2.5, 7.8)), ("mistral", 2, (1.1, 1.3))] {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for domain in ["arxiv", "c4", "github", "wikipedia"] {
            let path = folder.join(format!("olmoe/{model}__expert_counts__{domain}.csv"));
            let document = json(&format!(
                "trace stats {} --trace-top-k {top_k}",
                path.display()
            ));
            for layer in document["layers"].as_array().unwrap() {
                let skew = number(&layer["max_over_mean_of_sum"]);
                (least, most) = (least.min(skew), most.max(skew));
            }
        }
        let round = |value: f64| (value * 10.0).round() / 10.0;
        assert_eq!(
            (round(least), round(most)),
            published,
            "{model}: {least} {most}"
        );
    }
}

/// Joint counts of layers 0 and 7 lead from the loads of the one to those of the other.
#[test]
fn olmoe_layers_follow_from_their_joint_counts() {
    let Some(folder) = captures() else { return };
    let temporary = self::folder();
    let path = at(&temporary, "a.csv");
    let joint = folder.join("olmoe/olmoe__expert_counts_crosslayer__github.csv");
    done(&format!(
        "trace generate zipf:0.5 --joint {} --top-k 8 --steps 1 --gpus 8 --tokens-per-step 8192 --output {path}",
        joint.display()
    ));
    let document = json(&format!("trace stats {path}"));
    let shares = |layer: usize| -> Vec<f64> {
        let shares = document["layers"][layer]["mean_shares"].as_array().unwrap();
        shares.iter().map(number).collect()
    };
    let mut pairs = vec![vec![[0.0; 64]; 64]; 2];
    for line in fs::read_to_string(joint).unwrap().lines() {
        let numbers: Vec<usize> = line
            .split(|c: char| !c.is_ascii_digit())
            .filter(|text| !text.is_empty())
            .map(|text| text.parse().unwrap())
            .collect();
        pairs[numbers[0]][numbers[1]][numbers[2]] = numbers[3] as f64;
    }
    for (layer, pair) in pairs.iter().enumerate() {
        let mut expected = [0.0; 64];
        for (share, row) in shares(layer).iter().zip(pair) {
            let sum: f64 = row.iter().sum();
            let follow = expected.iter_mut().zip(row);
            follow.for_each(|(expected, count)| *expected += share * count / sum);
        }
        let made = shares(layer + 1);
        let apart: f64 = made
            .iter()
            .zip(expected)
            .map(|(made, e)| (made - e).abs())
            .sum();
        assert!(apart / 2.0 < 0.01, "layer {}: {apart}", layer + 1);
    }
}
