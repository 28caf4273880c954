//! What the commands print, and where their settings come from.

use moeplan::error::Exit;
use moeplan_tests::{Ran, moeplan, moeplan_args};
use serde_json::Value;
use std::fs;

/// Runs that are done in a blink.
const SMALL: &str = "--gpus 16 --tokens-per-step 512 --model-dim 256 --hidden-dim 256";

pub(crate) fn done(args: &str) -> Ran {
    let ran = moeplan(args);
    assert_eq!(ran.exit, Exit::Done, "{args}: {}", ran.stderr);
    ran
}

pub(crate) fn json(args: &str) -> Value {
    let ran = done(&format!("{args} --format json"));
    serde_json::from_str(&ran.stdout).expect("results are JSON")
}

/// Every number as `#`: the figures are other tests' business, their names and places are not.
fn masked(text: &str) -> String {
    let mut shown = String::new();
    let mut chars = text.chars().peekable();
    let mut before = ' ';
    while let Some(next) = chars.next() {
        let starts = next.is_ascii_digit() && !before.is_alphanumeric();
        if starts {
            while chars
                .peek()
                .is_some_and(|c| c.is_ascii_digit() || matches!(c, '.' | ','))
            {
                chars.next();
            }
            shown.push('#');
        } else if !(next == ' ' && before == ' ' && !shown.ends_with('\n')) {
            shown.push(next);
        }
        before = next;
    }
    shown
}

/// Every number of a JSON document as 0.
fn zeroed(value: &mut Value) {
    match value {
        Value::Number(number) => *number = 0.into(),
        Value::Array(items) => items.iter_mut().for_each(zeroed),
        Value::Object(map) => map.values_mut().for_each(zeroed),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

#[test]
fn help_of_every_command() {
    let help = |args: &str| done(args).stdout;
    insta::assert_snapshot!("help", help("--help"));
    for command in [
        "simulate",
        "compare",
        "breakdown",
        "collective",
        "kernel",
        "execute",
        "dash",
        "calibrate",
        "validate",
        "plan",
        "sweep",
        "merge",
    ] {
        insta::assert_snapshot!(
            format!("help-{command}"),
            help(&format!("{command} --help"))
        );
    }
}

/// Every command at a small size: name, arguments.
fn every_command() -> Vec<(&'static str, String)> {
    vec![
        (
            "simulate",
            format!("simulate {SMALL} --trace digits --steps 3 --per-step"),
        ),
        ("compare", format!("compare {SMALL} --ladder")),
        ("breakdown", format!("breakdown {SMALL} --strategy fairseq")),
        (
            "collective",
            "collective all-to-all --gpus 16 --bytes 1MiB".into(),
        ),
        ("kernel", "kernel gemm --m 64 --n 128 --k 256".into()),
        (
            "plan",
            "plan --gpus 8,16 --tokens-per-step 512 --model-dim 256 --hidden-dim 256".into(),
        ),
    ]
}

#[test]
fn tables_of_every_command() {
    for (name, args) in every_command() {
        let table = done(&args).stdout;
        for line in table.lines() {
            assert!(line.chars().count() <= 120, "{name}: {line}");
        }
        insta::assert_snapshot!(format!("table-{name}"), masked(&table));
    }
}

#[test]
fn json_of_every_command_starts_with_its_schema() {
    for (name, args) in every_command() {
        let mut document = json(&args);
        let keys: Vec<&String> = document.as_object().unwrap().keys().take(5).collect();
        assert_eq!(
            keys,
            ["schema", "version", "command", "seed", "settings"],
            "{name}"
        );
        assert_eq!(document["schema"], "moeplan/1");
        // The constants are the cluster file's, and many.
        document["settings"]
            .as_object_mut()
            .unwrap()
            .remove(if name == "plan" { "prices" } else { "hardware" })
            .unwrap();
        zeroed(&mut document);
        let text = serde_json::to_string_pretty(&document).unwrap();
        insta::assert_snapshot!(format!("json-{name}"), text);
    }
}

#[test]
fn csv_has_the_columns_of_the_json() {
    for (name, args) in every_command() {
        let text = done(&format!("{args} --format csv")).stdout;
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let header: Vec<String> = reader.headers().unwrap().iter().map(Into::into).collect();
        assert!(
            reader
                .records()
                .all(|row| row.unwrap().len() == header.len()),
            "{name}"
        );
        insta::assert_snapshot!(format!("csv-{name}"), header.join("\n"));
    }
}

#[test]
fn the_contract_of_simulate_and_compare_holds() {
    let document = json(&format!(
        "compare {SMALL} --strategy fairseq --strategy tutel"
    ));
    let runs = document["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for run in runs {
        for stage in ["gate", "encode", "dispatch", "expert", "combine", "decode"] {
            assert!(run["stages_ns"][stage].is_u64(), "{stage}");
            assert!(run["provenance"][stage].is_string(), "{stage}");
        }
        for key in [
            "step_time_ns",
            "exposed_communication_ns",
            "all_to_all_ns",
            "memory_bytes_per_gpu",
            "gpus",
        ] {
            assert!(run[key].is_u64(), "{key}");
        }
        for key in ["dropped_fraction", "capacity_factor"] {
            assert!(run[key].is_f64(), "{key}");
        }
        for key in ["adaptive_r", "pipeline_degree", "all_to_all"] {
            assert!(run["chosen"].get(key).is_some(), "{key}");
        }
    }
    assert_eq!(document["speedup"][0], 1.0);
    let ratio =
        runs[0]["step_time_ns"].as_f64().unwrap() / runs[1]["step_time_ns"].as_f64().unwrap();
    assert!((document["speedup"][1].as_f64().unwrap() - ratio).abs() < 1e-9);
}

#[test]
fn the_main_job_answers_its_questions() {
    let folder = tempfile::tempdir().unwrap();
    let study = folder.path().join("small.toml");
    fs::write(
        &study,
        "[cluster]\ngpus = 16\n[layer]\ntokens-per-step = 512\nmodel-dim = 256\n[routing]\nsteps = 2\n",
    )
    .unwrap();
    let ran = moeplan_args(&["--config", study.to_str().unwrap()]);
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    for wanted in [
        "fairseq",
        "tutel",
        "trace digits",
        "speed-up",
        "exposed communication",
        "no-drop",
        "fits",
    ] {
        assert!(ran.stdout.contains(wanted), "{wanted}: {}", ran.stdout);
    }
}

#[test]
fn a_fixed_capacity_that_covers_the_routing_drops_nothing_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let study = folder.path().join("study.toml");
    let text = "[[strategy]]\nname = 'covering'\ncover-routing = true\n[routing]\ntrace = 'digits'\nsteps = 4\n";
    fs::write(&study, text).unwrap();
    let covering = json(&format!("compare {SMALL} --config {}", study.display()));
    let run = &covering["runs"][0];
    assert_eq!(run["dropped_fraction"], 0.0);
    let factor = run["capacity_factor"].as_f64().unwrap();
    let less = json(&format!(
        "simulate {SMALL} --strategy fairseq --trace digits --steps 4 --capacity-factor {}",
        factor * 0.97
    ));
    assert!(less["runs"][0]["dropped_fraction"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let study = folder.path().join("study.toml");
    let text = "seed = 7\nphase = 'forward'\n[cluster]\ngpus = 32\n[layer]\nmodel-dim = 512\nexperts-per-gpu = 1\n\
                [[strategy]]\nbase = 'tutel'\npolicy = 'static'\n[routing]\nrouting = 'zipf:1'\nsteps = 2\n";
    fs::write(&study, text).unwrap();
    let config = format!("--config {}", study.display());
    let settings = |args: &str| json(args)["settings"].clone();
    let from_file = settings(&format!("simulate {config}"));
    assert_eq!(from_file["seed"], 7);
    assert_eq!(from_file["phase"], "forward");
    assert_eq!(from_file["cluster"]["gpus"], 32);
    assert_eq!(from_file["layer"]["model-dim"], 512);
    assert_eq!(from_file["layer"]["top-k"], 2);
    assert_eq!(from_file["strategy"][0]["policy"], "static");
    assert_eq!(from_file["routing"]["routing"], "zipf:1");
    let flags = "--seed 8 --phase training --gpus 16 --model-dim 256 --num-experts 8 --policy oracle --trace digits";
    let from_flags = settings(&format!("simulate {config} {flags}"));
    assert_eq!(from_flags["seed"], 8);
    assert_eq!(from_flags["phase"], "training");
    assert_eq!(from_flags["cluster"]["gpus"], 16);
    assert_eq!(from_flags["layer"]["model-dim"], 256);
    assert_eq!(from_flags["layer"]["num-experts"], 8);
    assert!(from_flags["layer"].get("experts-per-gpu").is_none());
    assert_eq!(from_flags["strategy"][0]["policy"], "oracle");
    assert_eq!(from_flags["routing"]["trace"], "digits");
    assert!(from_flags["routing"].get("routing").is_none());
    assert_eq!(from_flags["routing"]["steps"], 2);
}

#[test]
fn the_gate_is_a_setting_of_the_layer() {
    let folder = tempfile::tempdir().unwrap();
    let layer = folder.path().join("layer.toml");
    fs::write(&layer, "gate = 'cosine:64'\ntokens-per-step = 512\n").unwrap();
    let of_file = format!("simulate {SMALL} --layer {}", layer.display());
    let gate_time = |args: &str| {
        let ran = json(args);
        (
            ran["runs"][0]["stages_ns"]["gate"].as_u64().unwrap(),
            ran["settings"]["layer"]["gate"].clone(),
        )
    };
    let (linear, unsaid) = gate_time(&format!("simulate {SMALL}"));
    assert!(unsaid.is_null(), "a linear gate goes without saying");
    let cosine = gate_time(&of_file);
    assert_eq!(cosine.1, "cosine:64");
    assert_eq!(
        cosine,
        gate_time(&format!("simulate {SMALL} --gate cosine:64"))
    );
    assert!(cosine.0 > linear, "{} against {linear}", cosine.0);
    // A flag wins, and is in the settings: run again, they give the same.
    assert_eq!(
        gate_time(&format!("{of_file} --gate linear")),
        (linear, "linear".into())
    );
    let (authors, named) = gate_time(&format!("simulate {SMALL} --gate cosine"));
    assert_eq!(named, "cosine:256");
    assert!(authors > cosine.0, "{authors} against {}", cosine.0);
}

#[test]
fn the_settings_of_a_result_are_a_study_that_gives_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let args = format!(
        "compare {SMALL} --routing zipf:0.8 --steps 3 --seed 5 --capacity-factor 1.5 --dtype bf16 --gate cosine:32"
    );
    let first = json(&args);
    let mut settings = first["settings"].clone();
    settings.as_object_mut().unwrap().remove("hardware");
    let study = folder.path().join("again.toml");
    fs::write(&study, toml::to_string(&settings).unwrap()).unwrap();
    let again = json(&format!("compare --config {}", study.display()));
    assert_eq!(first, again);
}

#[test]
fn files_named_in_a_study_lie_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    file("layer.toml", "preset = 'swinv2-moe-b'\nmodel-dim = 128\n");
    file(
        "cluster.toml",
        "extends = 'nd-a100-v4-80gb'\nname = 'mine'\n[gpu]\nmemory-gib = 20.0\n",
    );
    file("mine.toml", "base = 'tutel'\nlayout = 'conventional'\n");
    let study = file(
        "study.toml",
        "[cluster]\nfile = 'cluster.toml'\ngpus = 16\n[layer]\nfile = 'layer.toml'\n[[strategy]]\nbase = 'mine.toml'\n",
    );
    let document = json(&format!("simulate --config {}", study.display()));
    let settings = &document["settings"];
    assert_eq!(settings["hardware"]["gpu"]["memory-gib"], 20.0);
    assert_eq!(settings["layer"]["model-dim"], 128);
    assert_eq!(settings["layer"]["top-k"], 1);
    assert_eq!(settings["strategy"][0]["layout"], "conventional");
    assert_eq!(document["runs"][0]["strategy"], "mine");
}

#[test]
fn results_are_the_same_for_any_number_of_threads() {
    for args in [
        format!("compare {SMALL} --trace digits --steps 4 --policy dictionary --format json"),
        format!("simulate {SMALL} --routing zipf:1 --steps 3 --padding dropless --format json"),
    ] {
        let on = |threads: u32| done(&format!("{args} --threads {threads}")).stdout;
        assert_eq!(on(1), on(3), "{args}");
    }
}

#[test]
fn output_goes_to_the_file_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("result.json");
    fs::write(&path, "old").unwrap();
    let args = format!("simulate {SMALL} --format json --output {}", path.display());
    let ran = done(&args);
    assert_eq!(ran.stdout, "");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(
        text,
        done(&format!("simulate {SMALL} --format json")).stdout
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn out_of_memory_is_a_result() {
    let big = "--gpus 8 --tokens-per-step 1048576 --hidden-dim 4096 --model-dim 4096";
    let ran = moeplan(&format!("simulate --strategy fairseq {big}"));
    assert_eq!(ran.exit, Exit::NoFeasiblePlan);
    assert!(
        ran.stdout.contains("over") && ran.stdout.contains("out of memory"),
        "{}",
        ran.stdout
    );
    let ran = moeplan(&format!("simulate --strategy fairseq {big} --format json"));
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["runs"][0]["fits"], false);
}

#[test]
fn a_critical_path_adds_up_to_the_step() {
    for more in [
        "--padding dropless --trace digits --steps 2",
        "--capacity-factor 0",
        "--experts-per-gpu 0.5",
    ] {
        let document = json(&format!("breakdown {SMALL} {more}"));
        let path = document["critical_path"].as_array().unwrap();
        let total: u64 = path
            .iter()
            .map(|op| op["ran_ns"].as_u64().unwrap() + op["waited_ns"].as_u64().unwrap())
            .sum();
        let step = document["step_time_ns"].as_u64().unwrap();
        // Each term is rounded to a nanosecond.
        assert!(
            total.abs_diff(step) <= path.len() as u64,
            "{more}: {total} {step}"
        );
        let shares: f64 = document["stages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|stage| stage["share"].as_f64().unwrap())
            .sum();
        assert!((shares - 1.0).abs() < 1e-9, "{more}: {shares}");
    }
}

#[test]
fn no_collective_beats_its_ports() {
    for collective in ["all-to-all", "all-gather", "reduce-scatter", "all-reduce"] {
        for gpus in [2, 8, 16, 64, 2048] {
            for bytes in ["1KiB", "1MiB", "1GiB"] {
                let args = format!(
                    "collective {collective} --gpus-per-node 8 --gpus {gpus} --bytes {bytes}"
                );
                let args = if gpus < 8 {
                    args.replace("--gpus-per-node 8", "")
                } else {
                    args
                };
                let run = json(&args)["runs"][0].clone();
                let (time, bound) = (
                    run["time_ns"].as_u64().unwrap(),
                    run["port_bound_ns"].as_u64().unwrap(),
                );
                assert!(time >= bound, "{args}: {time} < {bound}");
            }
        }
    }
    for algorithm in ["2dh", "2dh-fused", "2dh-ll128", "3dh"] {
        let run = json(&format!(
            "collective all-to-all --gpus 64 --bytes 64MiB --algorithm {algorithm}"
        ))["runs"][0]
            .clone();
        assert!(
            run["time_ns"].as_u64() >= run["port_bound_ns"].as_u64(),
            "{algorithm}"
        );
    }
}

#[test]
fn an_even_matrix_takes_as_long_as_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("even.csv");
    let row = ["65536"; 16].join(",");
    fs::write(&path, [row.as_str(); 16].join("\n")).unwrap();
    let uneven = json(&format!(
        "collective all-to-all --matrix {}",
        path.display()
    ));
    let even = json("collective all-to-all --gpus 16 --bytes 1MiB");
    let time = |document: &Value| document["runs"][0]["time_ns"].as_f64().unwrap();
    let ratio = time(&uneven) / time(&even);
    assert!((0.98..1.02).contains(&ratio), "{ratio}");
}

#[test]
fn a_measured_table_is_used_where_it_covers_the_case() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gemm.csv");
    fs::write(
        &path,
        "gemm_dtype,m,n,k,latency_ms\nbfloat16,64,128,256,0.5\n",
    )
    .unwrap();
    let run = json(&format!(
        "kernel gemm --m 64 --n 128 --k 256 --table {}",
        path.display()
    ))["runs"][0]
        .clone();
    assert_eq!(run["time_ns"], 500_000);
    assert_eq!(run["provenance"], "measured");
}

#[test]
fn top_k_may_change_from_step_to_step() {
    let fixed = "simulate --gpus 16 --strategy fairseq --routing zipf:0.5 --per-step";
    let alone = |k: &str| json(&format!("{fixed} --top-k {k}"))["runs"][0]["per_step"].clone();
    let both = json(&format!("{fixed} --top-k 2,1 --steps 3"));
    assert_eq!(
        both["settings"]["layer"]["top-k"],
        serde_json::json!([2, 1])
    );
    let steps = &both["runs"][0]["per_step"];
    let time = |steps: &Value, index: usize| steps[index]["step_time_ns"].clone();
    assert_eq!(time(steps, 0), time(&alone("2"), 0));
    // Drawn from another stream than step 0, but padded: the same capacity, the same time.
    assert_eq!(time(steps, 1), time(&alone("1 --steps 2"), 1));
    assert_eq!(time(steps, 2), time(&alone("2 --steps 3"), 2));
    assert_ne!(time(steps, 0), time(steps, 1));
}
