//! Sweeps: what a file means, and that stopping, killing and cutting them changes no byte.

use crate::cli::done;
use moeplan::error::Exit;
use moeplan_tests::{Ran, moeplan_args};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// 24 scenarios of a few milliseconds, one of which cannot be run.
const SMALL: &str = r#"
[base]
layer = { tokens-per-step = 512, model-dim = 256, hidden-dim = 256 }
routing = { trace = "digits", steps = 2 }

[axes]
cluster.gpus = [8, 16]
"strategy.base" = ["fairseq", "tutel"]
seed = [0, 1, 2]

[[zip]]
layer.top-k = [1, 2]
layer.capacity-factor = [1.0, 0]

[[where]]
keep = "gpus * top_k < 32 || seed > 0"

[[case]]
cluster.gpus = 64
layer.num-experts = 7
"#;

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(text: &str) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("sweep.toml"), text).unwrap();
        Bench { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `sweep` with these arguments, `@NAME` being a file of this bench.
    fn run(&self, args: &str) -> Ran {
        let args: Vec<String> = self.args(args);
        moeplan_args(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn args(&self, args: &str) -> Vec<String> {
        let named = |arg: &str| match arg.strip_prefix('@') {
            Some(name) => self.path(name).display().to_string(),
            None => arg.to_owned(),
        };
        args.split_whitespace().map(named).collect()
    }

    fn ok(&self, args: &str) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.exit, Exit::Done, "{args}: {}", ran.stderr);
        ran
    }

    /// `run` as a process of its own.
    fn start(&self, args: &str) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "sweep::as_a_process"])
            .env(ARGUMENTS, self.args(args).join("\n"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The error of a run that must not leave a file.
    fn refused(&self, args: &str) -> String {
        let ran = self.run(args);
        assert_eq!(ran.exit, Exit::BadInput, "{args}: {}", ran.stderr);
        ran.stderr
    }
}

fn rows(text: &[u8]) -> Vec<csv::StringRecord> {
    csv::Reader::from_reader(text)
        .records()
        .map(Result::unwrap)
        .collect()
}

#[test]
fn a_sweep_is_every_combination_that_is_kept() {
    let bench = Bench::new(SMALL);
    bench.ok("sweep @sweep.toml --output @out.csv");
    let text = bench.bytes("out.csv");
    let header = String::from_utf8(text.clone()).unwrap();
    let header: Vec<&str> = header.lines().next().unwrap().split(',').collect();
    assert_eq!(
        &header[..9],
        [
            "scenario",
            "cluster.gpus",
            "strategy.base",
            "seed",
            "layer.top-k",
            "layer.capacity-factor",
            "layer.num-experts",
            "status",
            "reason"
        ]
    );
    let rows = rows(&text);
    // 2 x 2 x 3 x 2, less those of 16 GPUs with k = 2 and seed 0, and one case.
    assert_eq!(rows.len(), 24 - 2 + 1);
    assert!(rows[..22].iter().all(|row| &row[7] == "done"));
    let last = rows.last().unwrap();
    assert_eq!((&last[1], &last[7]), ("64", "refused"));
    assert!(last[8].contains("num-experts"), "{}", &last[8]);
    assert!(!bench.path("out.csv.partial").exists());
}

#[test]
fn a_row_says_what_simulate_says() {
    let bench = Bench::new("[axes]\ncluster.gpus = [16]\nlayer.model-dim = [256, 512]\n");
    let document = bench.ok("sweep @sweep.toml --format json").stdout;
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    let alone = done("simulate --gpus 16 --model-dim 512 --format json").stdout;
    let alone: serde_json::Value = serde_json::from_str(&alone).unwrap();
    let (row, run) = (&document["rows"][1], &alone["runs"][0]);
    for name in [
        "step_time_ns",
        "memory_bytes_per_gpu",
        "dropped_fraction",
        "exposed_communication_ns",
    ] {
        assert_eq!(row[name], run[name], "{name}");
    }
    assert_eq!(row["stages_ns.expert"], run["stages_ns"]["expert"]);
    let tokens = 16.0 * 16_384.0 / (run["step_time_ns"].as_f64().unwrap() * 1e-9);
    let error = row["tokens_per_second"].as_f64().unwrap() / tokens - 1.0;
    assert!(error.abs() < 1e-6, "{error}");
}

#[test]
fn shards_merge_to_the_same_bytes() {
    let bench = Bench::new(SMALL);
    for ending in ["csv", "json", "parquet"] {
        bench.ok(&format!("sweep @sweep.toml --output @whole.{ending}"));
    }
    for shards in 1..=5 {
        let names: Vec<String> = (1..=shards)
            .map(|shard| {
                let name = format!("@shard-{shards}-{shard}");
                bench.ok(&format!(
                    "sweep @sweep.toml --shard {shard}/{shards} --output {name}"
                ));
                name
            })
            .rev()
            .collect();
        for ending in ["csv", "json", "parquet"] {
            bench.ok(&format!(
                "merge {} --output @merged.{ending}",
                names.join(" ")
            ));
            assert_eq!(
                bench.bytes(&format!("merged.{ending}")),
                bench.bytes(&format!("whole.{ending}")),
                "{shards} shards, {ending}"
            );
        }
    }
    let missing = bench.refused("merge @shard-3-1 @shard-3-3 --output @merged.csv");
    assert!(missing.contains("found no 2/3"), "{missing}");
    let twice = bench.refused("merge @shard-3-1 @shard-3-1 @shard-3-2 @shard-3-3 --output @m.csv");
    assert!(twice.contains("once"), "{twice}");
    let mixed = bench.refused("merge @shard-3-1 @shard-2-2 --output @m.csv");
    assert!(mixed.contains("another"), "{mixed}");
    fs::write(
        bench.path("sweep.toml"),
        SMALL.replace("0, 1, 2", "0, 1, 3"),
    )
    .unwrap();
    bench.ok("sweep @sweep.toml --shard 2/3 --output @other");
    let other = bench.refused("merge @shard-3-1 @other @shard-3-3 --output @m.csv");
    assert!(other.contains("another"), "{other}");
    assert!(!bench.path("m.csv").exists());
}

#[test]
fn threads_change_nothing() {
    let bench = Bench::new(SMALL);
    for threads in [1, 2, 5] {
        bench.ok(&format!(
            "sweep @sweep.toml --threads {threads} --output @{threads}.csv"
        ));
    }
    assert_eq!(bench.bytes("1.csv"), bench.bytes("2.csv"));
    assert_eq!(bench.bytes("1.csv"), bench.bytes("5.csv"));
}

/// Variable that holds the arguments, one a line, of [`as_a_process`].
const ARGUMENTS: &str = "MOEPLAN_TEST_ARGUMENTS";

#[test]
#[ignore = "what another test starts as a process of its own"]
#[expect(
    clippy::exit,
    reason = "the process is the program, and ends as it does"
)]
fn as_a_process() {
    if let Ok(args) = std::env::var(ARGUMENTS) {
        moeplan::heed_ctrl_c();
        let ran = moeplan_args(&args.lines().collect::<Vec<_>>());
        std::process::exit(i32::from(ran.exit.code()));
    }
}

#[test]
fn killed_at_any_moment_a_sweep_goes_on_to_the_same_bytes() {
    let bench = Bench::new(&SMALL.replace("0, 1, 2", "0, 1, 2, 3, 4, 5, 6, 7"));
    bench.ok("sweep @sweep.toml --output @whole.csv");
    let start = |args: &str| bench.start(args);
    let args = "sweep @sweep.toml --threads 1 --resume --output @out.csv";
    let (mut kills, mut resumed) = (0, 0);
    let mut moment = 7u64;
    while kills < 50 {
        // A step of a linear generator: moments from 0 to 100 ms, the same in every run.
        moment = (moment * 1_103_515_245 + 12_345) % (1 << 31);
        let mut child = start(args);
        std::thread::sleep(Duration::from_millis(moment % 101));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        kills += 1;
        if bench.path("out.csv.partial").exists() {
            resumed += 1;
        }
        // It may have been faster than the kill: then the result is whole, and the next starts over.
        if status.success() {
            assert_eq!(bench.bytes("out.csv"), bench.bytes("whole.csv"));
            fs::remove_file(bench.path("out.csv")).unwrap();
        }
    }
    assert!(
        resumed > 5,
        "only {resumed} of {kills} kills left work to resume"
    );
    assert!(start(args).wait().unwrap().success());
    assert_eq!(bench.bytes("out.csv"), bench.bytes("whole.csv"));
    assert!(!bench.path("out.csv.partial").exists());
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_done_and_resume_does_the_rest() {
    let seeds: Vec<String> = (0..200).map(|seed| seed.to_string()).collect();
    let bench = Bench::new(&SMALL.replace("0, 1, 2", &seeds.join(", ")));
    bench.ok("sweep @sweep.toml --output @whole.csv");
    let journal = bench.path("out.csv.partial");
    let kept = || fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
    let args = "sweep @sweep.toml --threads 1 --output @out.csv";
    let mut child = bench.start(args);
    // The first line says what the journal is of.
    while kept() < 2 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = Command::new("sh")
        .args(["-c", &format!("kill -INT {}", child.id())])
        .status();
    assert!(sent.unwrap().success());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(i32::from(Exit::Interrupted.code())));
    let done = kept() - 1;
    assert!(done > 0 && !bench.path("out.csv").exists());
    let resumed = bench.ok(&format!("{args} --resume"));
    let done = format!("{done} scenarios were done before");
    assert!(resumed.stderr.contains(&done), "{}", resumed.stderr);
    assert_eq!(bench.bytes("out.csv"), bench.bytes("whole.csv"));
    assert!(!journal.exists());
}

#[test]
fn work_of_an_earlier_run_is_neither_lost_nor_mixed() {
    let bench = Bench::new(SMALL);
    bench.ok("sweep @sweep.toml --shard 1/2 --output @half");
    // A shard is a journal: half of the work, found as an interruption leaves it.
    let whole = String::from_utf8(bench.bytes("half")).unwrap();
    let as_whole = whole.replace(
        r#""shard":{"number":1,"of":2}"#,
        r#""shard":{"number":1,"of":1}"#,
    );
    fs::write(bench.path("out.csv.partial"), as_whole).unwrap();
    let without = bench.refused("sweep @sweep.toml --output @out.csv");
    assert!(without.contains("--resume"), "{without}");
    let resumed = bench.ok("sweep @sweep.toml --resume --output @out.csv");
    assert!(
        resumed.stderr.contains("12 scenarios were done before"),
        "{}",
        resumed.stderr
    );
    bench.ok("sweep @sweep.toml --output @fresh.csv");
    assert_eq!(bench.bytes("out.csv"), bench.bytes("fresh.csv"));
    fs::copy(bench.path("half"), bench.path("out.csv.partial")).unwrap();
    let shard = bench.refused("sweep @sweep.toml --resume --output @out.csv");
    assert!(shard.contains("shard"), "{shard}");
    let again = bench.ok("sweep @sweep.toml --shard 1/2 --resume --output @half");
    assert!(again.stderr.contains("nothing is left"), "{}", again.stderr);
}

#[test]
fn a_file_that_a_scenario_names_belongs_to_the_sweep() {
    let bench = Bench::new("[axes]\ncluster.gpus = [8, 16]\n[base]\ncluster.file = 'c.toml'\n");
    let cluster = |memory: u64| {
        let text = format!(
            "extends = 'nd-a100-v4-80gb'\nname = 'ours'\n[gpu]\nmemory-gib = {memory}.0\n[sources]\n\
             'gpu.memory-gib' = 'us'\n"
        );
        fs::write(bench.path("c.toml"), text).unwrap();
    };
    cluster(80);
    bench.ok("sweep @sweep.toml --shard 1/2 --output @one");
    cluster(1);
    bench.ok("sweep @sweep.toml --shard 2/2 --output @two");
    let error = bench.refused("merge @one @two --output @out.csv");
    assert!(error.contains("another"), "{error}");
    bench.ok("sweep @sweep.toml --output @out.csv");
    let rows = rows(&bench.bytes("out.csv"));
    assert!(
        rows.iter()
            .all(|row| &row[2] == "does-not-fit" && row[3].contains("memory"))
    );
}

#[test]
fn mistakes_name_file_line_and_field() {
    for (text, wanted) in [
        (
            "[axes]\ncluster.gpuz = [8]\n",
            ["sweep.toml:2: ", "gpuz", "expected"],
        ),
        (
            "[axes]\nclouster.gpus = [8]\n",
            ["sweep.toml:2: ", "clouster", "expected"],
        ),
        (
            "[axes]\ncluster.gpus = []\n",
            ["sweep.toml:2: ", "axes.cluster.gpus", "at least one value"],
        ),
        (
            "[axes]\ncluster.gpus = 8\n",
            ["sweep.toml:2: ", "axes.cluster.gpus", "a list"],
        ),
        (
            "[axes]\n'cluster.gpus' = [8, 'many']\n",
            ["sweep.toml:2: ", "axes.cluster.gpus[1]", "many"],
        ),
        (
            "[axes]\nlayer.dtype = ['bf16', 'fp8']\n",
            ["sweep.toml:2: ", "axes.layer.dtype[1]", "fp8"],
        ),
        (
            "[base]\n[base.cluster]\ngpus = true\n",
            ["sweep.toml:3: ", "base.cluster.gpus", "true"],
        ),
        (
            "[base]\noutput.quiet = true\n",
            ["sweep.toml:2: ", "base.output", "no scenario"],
        ),
        (
            "[axes]\noutput.threads = [1]\n",
            ["sweep.toml:2: ", "axes.output.threads", "no scenario"],
        ),
        (
            "[axis]\nseed = [1]\n",
            ["sweep.toml:1: ", "axis", "unknown field"],
        ),
        (
            "[[zip]]\nseed = [1, 2]\ncluster.gpus = [8]\n",
            ["sweep.toml:3: ", "zip[0].cluster.gpus", "2 values"],
        ),
        (
            "[axes]\nseed = [1]\n[[zip]]\nseed = [1]\n",
            ["sweep.toml:", "`seed` twice", "expected"],
        ),
        (
            "[axes]\nseed = [1]\n[[where]]\nkeep = 'gpus > 8'\n",
            ["sweep.toml:4: ", "where[0].keep", "`gpus`"],
        ),
        (
            "[axes]\nseed = [1]\n[[where]]\nkeep = 'seed >'\n",
            ["sweep.toml:4: ", "where[0].keep", "expected"],
        ),
        (
            "[axes]\nseed = [1]\n[[where]]\nkeep = 'seed > 1'\n",
            ["sweep.toml:3: ", "where", "found none"],
        ),
        (
            "[[case]]\nlayer.top-q = 2\n",
            ["sweep.toml:2: ", "case[0].layer.top-q", "top-q"],
        ),
        ("[axes\n", ["sweep.toml:1", "", ""]),
        (
            "[axes]\nseed = [1]\n'layer.top-k' = [-3]\n",
            ["sweep.toml:3: ", "axes.layer.top-k[0]", "-3"],
        ),
    ] {
        let bench = Bench::new(text);
        let error = bench.refused("sweep @sweep.toml --output @out.csv");
        for part in wanted {
            assert!(error.contains(part), "{text}\n{error}\nwanted {part}");
        }
        assert!(!bench.path("out.csv").exists() && !bench.path("out.csv.partial").exists());
    }
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    let bench = Bench::new(SMALL);
    for (args, wanted) in [
        ("sweep @sweep.toml --resume", "--output"),
        ("sweep @sweep.toml --shard 1/2", "--output"),
        ("sweep @sweep.toml --shard 3/2 --output @o", "I/N"),
        ("sweep @sweep.toml --shard 0/2 --output @o", "I/N"),
        ("sweep @nowhere.toml", "nowhere.toml"),
        ("sweep @sweep.toml --config @sweep.toml", "unknown field"),
        (
            "sweep @sweep.toml --launch kubernetes --output @o",
            "--dry-run",
        ),
        ("sweep @sweep.toml --launch slurm", "--output"),
        (
            "sweep @sweep.toml --launch slurm --shards 0 --output @o",
            "--shards",
        ),
        (
            "sweep @sweep.toml --price-list @nowhere.toml --output @o",
            "",
        ),
        ("merge @sweep.toml --output @o", "journal"),
    ] {
        let ran = bench.run(args);
        if wanted.is_empty() {
            // A list that is not there is the scenarios' own mistake.
            assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
            continue;
        }
        assert_eq!(ran.exit, Exit::BadInput, "{args}: {}", ran.stderr);
        assert!(ran.stderr.contains(wanted), "{args}: {}", ran.stderr);
    }
}

#[test]
fn launches_print_what_they_would_submit() {
    let bench = Bench::new(SMALL);
    let folder = bench.folder.path().display().to_string();
    let shown = |text: &str| {
        let program = std::env::current_exe().unwrap().display().to_string();
        text.replace(&folder, "FOLDER").replace(&program, "MOEPLAN")
    };
    let slurm = bench.ok(
        "sweep @sweep.toml --launch slurm --dry-run --shards 3 --price reserved-1y --seed 4 \
         --sbatch-option --partition=main --output @out.csv",
    );
    insta::assert_snapshot!("launch-slurm", shown(&slurm.stdout));
    let kubernetes =
        bench.ok("sweep @sweep.toml --launch kubernetes --dry-run --shards 3 --output out.csv");
    insta::assert_snapshot!("launch-kubernetes", shown(&kubernetes.stdout));
}

/// Needs root, and Slurm or a way to install it: `cargo build -p moeplan` and then
/// `cargo test -p moeplan-tests --test it -- --ignored a_real_slurm`.
#[test]
#[ignore = "starts a real Slurm on this machine"]
fn a_real_slurm_runs_and_merges_the_shards() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("slurm.sh");
    // The tests' own binary lies in target/PROFILE/deps, the program's beside that folder.
    let test = std::env::current_exe().unwrap();
    let binary = test.ancestors().nth(2).unwrap().join("moeplan");
    let ran = Command::new("bash")
        .arg(script)
        .arg(binary)
        .status()
        .unwrap();
    match ran.code() {
        Some(0) => {}
        Some(77) => eprintln!("SKIPPED, NOTHING CHECKED: Slurm cannot be installed here"),
        other => panic!("tests/slurm.sh ended with {other:?}"),
    }
}
