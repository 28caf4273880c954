//! Every setting changes the result when it should; those that do not are listed with the reason.
//!
//! Users of other simulators found settings that were silently ignored.

use moeplan::error::Exit;
use moeplan_sim::hardware::{Hardware, builtin};
use moeplan_tests::moeplan;
use std::fs;
use toml::Value;

/// The rows of a run as CSV, without settings.
fn rows(args: &str) -> String {
    let ran = moeplan(&format!("{args} --format csv"));
    let fine = matches!(ran.exit, Exit::Done | Exit::NoFeasiblePlan);
    assert!(fine, "{args}: {}", ran.stderr);
    ran.stdout
}

#[test]
fn every_flag_of_a_simulation_matters() {
    let small = "simulate --gpus 64 --tokens-per-step 1024 --model-dim 512 --hidden-dim 512";
    // Experts over several GPUs, so that r has values to take; nothing left to a policy.
    let shared = "--experts-per-gpu 0.25 --strategy fairseq --encode sparse --all-to-all 2dh --layout flexible \
                  --pipeline-degree 2 --trace digits --steps 2";
    for (base, change) in [
        ("", "--cluster nd-a100-v4-40gb"),
        // dgx-a100 is the same machine behind other switches: see the preset.
        ("", "--gpus 128"),
        ("", "--gpus-per-node 4"),
        ("", "--layer swinv2-moe-b"),
        ("", "--tokens-per-step 2048"),
        ("", "--model-dim 1024"),
        ("", "--hidden-dim 1024"),
        ("", "--experts-per-gpu 0.5"),
        ("", "--num-experts 32"),
        ("", "--top-k 1"),
        ("", "--capacity-factor 2"),
        ("", "--capacity-factor 0"),
        ("", "--capacity-factor -1.5"),
        ("", "--dtype fp32"),
        ("", "--dtype bf16"),
        ("--dtype bf16 --padding dropless", "--dtype fp32"),
        ("", "--phase forward"),
        ("", "--strategy tutel"),
        ("", "--encode dense"),
        ("", "--all-to-all linear"),
        ("", "--all-to-all 2dh-fused"),
        ("", "--all-to-all 2dh-ll128"),
        ("", "--all-to-all 3dh"),
        ("--all-to-all linear", "--all-to-all auto"),
        ("", "--layout conventional"),
        ("", "--pipeline-degree 4"),
        ("", "--backward-degree 1"),
        ("", "--adaptive-r 0"),
        ("", "--adaptive-r 2"),
        ("", "--padding dropless"),
        ("", "--trace-layer 2"),
        ("", "--steps 3"),
        ("", "--routing zipf:1"),
        ("--routing zipf:1", "--routing zipf:1.5"),
        ("--routing zipf:1", "--routing zipf:1,drift=0.5"),
        ("--routing zipf:1", "--routing dirichlet:0.3"),
        ("--routing zipf:1", "--routing hot:0.5"),
        ("", "--seed 9"),
        // A policy decides only what is auto, and needs steps that differ.
        (
            "--capacity-factor 0 --routing zipf:2,drift=1 --steps 12 --pipeline-degree auto --all-to-all auto",
            "--policy dictionary",
        ),
        (
            "--policy dictionary --capacity-factor 0 --routing zipf:2,drift=1 --steps 12 --pipeline-degree auto",
            "--policy oracle",
        ),
    ] {
        let name = |flag: &str| flag.split(' ').next().unwrap_or_default().to_owned();
        // A flag can be given once: what the base or the change says goes, and what contradicts it.
        let mut args: Vec<String> = Vec::new();
        let mut say = |words: &str| {
            let words: Vec<&str> = words.split_whitespace().collect();
            for pair in words.chunks(2) {
                let flag = name(pair[0]);
                let gone: &[&str] = match flag.as_str() {
                    "--routing" => &["--trace", "--trace-layer"],
                    "--num-experts" => &["--experts-per-gpu"],
                    "--experts-per-gpu" => &["--num-experts"],
                    _ => &[],
                };
                args.retain(|said| {
                    let said = said.split(' ').next().unwrap_or_default();
                    said != flag && !gone.contains(&said)
                });
                args.push(pair.join(" "));
            }
            args.join(" ")
        };
        say(small.trim_start_matches("simulate"));
        say(shared);
        let before = say(base);
        let after = say(change);
        assert_ne!(
            rows(&format!("simulate {before}")),
            rows(&format!("simulate {after}")),
            "{change} changes nothing of {before}"
        );
    }
}

/// Runs that between them use every constant of a cluster file.
fn probes() -> Vec<String> {
    let layer = "--tokens-per-step 1024 --model-dim 512 --hidden-dim 512";
    let mut probes = vec![
        format!("simulate --gpus 64 {layer} --strategy fairseq"),
        format!("simulate --gpus 64 {layer} --strategy fairseq --encode sparse --pipeline-degree 2"),
        format!("simulate --gpus 64 {layer} --strategy tutel --capacity-factor 0 --routing zipf:1"),
        format!("simulate --gpus 16 {layer} --strategy fairseq --padding dropless --routing zipf:1"),
        "simulate --gpus 16 --strategy fairseq --encode sparse --pipeline-degree 4 --layout flexible".into(),
        "simulate --gpus 8 --strategy fairseq --encode dense --pipeline-degree 4".into(),
        format!("simulate --gpus 64 {layer} --strategy fairseq --all-to-all 2dh-ll128"),
        format!("simulate --gpus 64 {layer} --strategy fairseq --num-experts 8 --adaptive-r 0"),
        format!("simulate --gpus 64 {layer} --strategy fairseq --num-experts 8 --adaptive-r 2"),
        "simulate --gpus 256 --strategy fairseq".into(),
        "simulate --gpus 2048 --strategy fairseq".into(),
        "model swinv2-moe-s --gpus 16 --strategy dense".into(),
    ];
    for (gpus, library) in [
        (2, "nccl-2.27.3"),
        (4, "nccl-2.27.3"),
        (8, "nccl-2.27.3"),
        (16, "nccl-2.27.3"),
        (8, "nccl-2.10.3"),
        (8, "nccl-2.17.1"),
    ] {
        for kind in ["all-to-all", "all-gather", "reduce-scatter", "all-reduce"] {
            for bytes in ["1KiB", "32KiB", "64KiB", "128KiB", "256KiB", "4MiB", "1GiB"] {
                probes.push(format!(
                    "collective {kind} --gpus {gpus} --bytes {bytes} --library {library}"
                ));
            }
        }
    }
    probes.push("collective all-reduce --gpus 8 --bytes 8 --library nccl-2.10.3".into());
    for kind in ["all-to-all", "all-gather", "reduce-scatter", "all-reduce"] {
        for size in 8..24 {
            probes.push(format!("collective {kind} --gpus 4 --bytes {}", 3 << size));
        }
    }
    for bytes in ["1KiB", "1GiB"] {
        probes.push(format!(
            "collective all-gather --gpus 2 --gpus-per-node 1 --bytes {bytes}"
        ));
    }
    for shape in [
        "--m 1 --n 4096 --k 4096",
        "--m 1 --n 64 --k 64",
        "--m 1 --n 512 --k 512",
        "--m 16 --n 32 --k 32",
        "--m 32 --n 1024 --k 1024",
        "--m 128 --n 32 --k 1024",
        "--m 96 --n 96 --k 8192",
        "--m 48 --n 4096 --k 2048",
        "--m 512 --n 64 --k 4096",
        "--m 1024 --n 1024 --k 1024",
        "--m 320 --n 5120 --k 320",
        "--m 1 --n 64 --k 65536",
        "--m 8 --n 128 --k 16384",
        "--m 8 --n 32768 --k 512",
        "--m 64 --n 64 --k 64",
        "--m 256 --n 256 --k 4096",
        "--m 640 --n 1920 --k 512",
        "--m 4096 --n 4096 --k 64",
        "--m 8192 --n 8192 --k 8192",
        "--m 8192 --n 65536 --k 128",
        "--m 8192 --n 32 --k 65536",
    ] {
        for dtype in ["bf16", "tf32", "fp32"] {
            probes.push(format!("kernel gemm {shape} --dtype {dtype}"));
        }
    }
    for batch in [2, 8, 64, 512] {
        for shape in [
            "--m 16 --n 16",
            "--m 16 --n 64",
            "--m 32 --n 32",
            "--m 64 --n 16",
            "--m 8 --n 96",
            "--m 96 --n 48",
        ] {
            for k in [64, 1024, 16384] {
                probes.push(format!(
                    "kernel batched-gemm --batch {batch} {shape} --k {k}"
                ));
            }
        }
    }
    for tokens in [1, 4, 16, 64, 256, 1024, 16384] {
        for shape in [
            "--hidden-size 4096 --inter-size 14336 --top-k 2 --num-experts 8",
            "--hidden-size 7168 --inter-size 2048 --top-k 8 --num-experts 256",
            "--hidden-size 2048 --inter-size 768 --top-k 8 --num-experts 128 --tp 4",
            "--hidden-size 2048 --inter-size 384 --top-k 8 --num-experts 128 --tp 8",
            "--hidden-size 2880 --inter-size 2888 --top-k 4 --num-experts 128 --ep 16",
        ] {
            probes.push(format!("kernel moe-ffn --num-tokens {tokens} {shape}"));
        }
    }
    probes
}

/// Constants that no probe can see, by prefix, and why.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("name", "a name"),
    ("description", "a description"),
    ("sources", "where constants come from"),
    ("gpu.name", "a name"),
    ("software.name", "a name"),
    (
        "collectives.default-library",
        "checked by --library in the probes",
    ),
    (
        "node.gpus",
        "the probes' GPUs fill nodes of eight; --gpus-per-node is among the flags above",
    ),
    (
        "collectives.intra.ll128.ramp",
        "this protocol's fit has no ramp: its coefficients are 0, so neither has its form an effect",
    ),
];

/// Numbers of a document by path, as `gpu.gemm.tiles[0].m`.
fn numbers(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let dot = if path.is_empty() { "" } else { "." };
                numbers(value, &format!("{path}{dot}{key}"), found);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                numbers(value, &format!("{path}[{index}]"), found);
            }
        }
        Value::Integer(_) | Value::Float(_) => found.push(path.to_owned()),
        Value::String(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

/// Applies `change` to the number at `path`; keys may hold dots, so they are tried.
fn adjust(value: &mut Value, path: &str, change: f64) {
    match value {
        Value::Integer(number) => {
            let scaled = (*number as f64 * change) as i64;
            *number = if scaled == *number {
                scaled + 1
            } else {
                scaled
            };
        }
        Value::Float(number) => {
            *number = if *number == 0.0 {
                change
            } else {
                *number * change
            }
        }
        Value::Table(table) => {
            for (key, value) in table.iter_mut() {
                if let Some(rest) = path.strip_prefix(key.as_str())
                    && (rest.is_empty() || rest.starts_with(['.', '[']))
                {
                    adjust(value, rest.strip_prefix('.').unwrap_or(rest), change);
                }
            }
        }
        Value::Array(items) => {
            if let Some((index, rest)) =
                path.strip_prefix('[').and_then(|rest| rest.split_once(']'))
            {
                let index: usize = index.parse().unwrap_or(usize::MAX);
                adjust(
                    &mut items[index],
                    rest.strip_prefix('.').unwrap_or(rest),
                    change,
                );
            }
        }
        Value::String(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

#[test]
fn every_constant_of_a_cluster_file_matters() {
    let preset = builtin("nd-a100-v4-80gb").unwrap();
    // Switches above the NICs only matter where they can be a bottleneck.
    let mut blocking = preset.clone();
    blocking.network.oversubscription = 2.0;
    blocking.network.nodes_per_leaf = 4;
    let mut hashed = blocking.clone();
    hashed.network.routing = moeplan_sim::hardware::Routing::Static;
    hashed.network.spines = 3;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cluster.toml");
    let on = |cluster: &Value, probe: &str| {
        fs::write(&path, toml::to_string(cluster).unwrap()).unwrap();
        rows(&format!("{probe} --cluster {}", path.display()))
    };
    let probes = probes();
    let bases: Vec<(Value, Vec<String>)> = [preset, blocking, hashed]
        .iter()
        .enumerate()
        .map(|(index, hardware)| {
            let base = Value::try_from(hardware).unwrap();
            // The variants differ in the network only.
            let probes = if index == 0 {
                &probes[..]
            } else {
                &probes[..10]
            };
            let before = probes.iter().map(|probe| on(&base, probe)).collect();
            (base, before)
        })
        .collect();
    let mut paths = Vec::new();
    numbers(&bases[0].0, "", &mut paths);
    assert!(paths.len() > 100, "{}", paths.len());
    let mut silent = Vec::new();
    for constant in paths {
        if WITHOUT_EFFECT
            .iter()
            .any(|(prefix, _)| constant.starts_with(prefix))
        {
            continue;
        }
        let kind = match constant.as_str() {
            c if c.starts_with("gpu.gemm.") => "gemm",
            c if c.starts_with("gpu.moe-ffn.") => "moe-ffn",
            c if c.starts_with("collectives.") => "collective",
            c if c.starts_with("software.framework.") => "model",
            _ => "simulate",
        };
        // Only the network's constants depend on the network's variants.
        let variants = if constant.starts_with("network.") {
            3
        } else {
            1
        };
        let matters = bases[..variants].iter().any(|(base, before)| {
            [1.5, 0.5, 0.1, 4.0].iter().any(|&change| {
                let mut other = base.clone();
                adjust(&mut other, &constant, change);
                let text = toml::to_string(&other).unwrap();
                // Out of range in this direction: refused, not ignored.
                Hardware::from_toml(&text).is_ok()
                    && probes
                        .iter()
                        .zip(before)
                        .filter(|(probe, _)| probe.contains(kind))
                        .any(|(probe, before)| on(&other, probe) != *before)
            })
        });
        if !matters {
            silent.push(constant);
        }
    }
    assert!(silent.is_empty(), "no probe sees {silent:#?}");
}

#[test]
fn a_users_gemm_table_replaces_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gemm.csv");
    std::fs::write(
        &path,
        "gemm_dtype,m,n,k,latency_ms\nbfloat16,16384,2048,2048,5.0\n",
    )
    .unwrap();
    let seconds = |extra: &[&str]| {
        let fixed = [
            "simulate",
            "--gpus",
            "16",
            "--dtype",
            "bf16",
            "--strategy",
            "fairseq",
            "--format",
            "csv",
        ];
        let args: Vec<&str> = fixed.iter().chain(extra).copied().collect();
        let ran = moeplan_tests::moeplan_args(&args);
        assert_eq!(ran.exit, moeplan::error::Exit::Done, "{}", ran.stderr);
        ran.stdout
    };
    let table = path.to_str().unwrap();
    assert_ne!(seconds(&[]), seconds(&["--gemm-table", table]));
    std::fs::write(&path, "gemm_dtype,m,n,k\nbfloat16,1,1,1\n").unwrap();
    let ran = moeplan_tests::moeplan_args(&["simulate", "--gpus", "16", "--gemm-table", table]);
    assert_eq!(ran.exit, moeplan::error::Exit::BadInput);
    assert!(ran.stderr.contains("latency_ms"), "{}", ran.stderr);
}
