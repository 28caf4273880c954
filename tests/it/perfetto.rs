//! Timelines for Perfetto: what a viewer relies on, and Perfetto itself where it can be had.

use moeplan::error::Exit;
use moeplan_tests::moeplan_args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// A track: process and thread.
type Track = (u64, u64);

/// A slice: begin and end in nanoseconds, and operation.
type Slice = (u64, u64, u64);

const SIMULATED: &str = "breakdown --gpus 16 --trace digits --steps 2 --padding dropless --pipeline-degree 2 \
                         --all-to-all 2dh --adaptive-r 1 --export perfetto";

const EXECUTED: &str = "execute --ranks 4 --tokens-per-step 64 --model-dim 32 --hidden-dim 32 --repeats 1 \
                        --pipeline-degree 2 --export perfetto";

fn exported(args: &str) -> String {
    let args: Vec<&str> = args.split_whitespace().collect();
    let ran = moeplan_args(&args);
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    ran.stdout
}

fn trace_of(args: &str) -> Value {
    serde_json::from_str(&exported(args)).expect("JSON")
}

/// Nanoseconds of a time in microseconds, which has no finer digits.
fn nanos(event: &Value, key: &str) -> u64 {
    let micros = event[key].as_f64().expect("a number");
    (micros * 1e3).round() as u64
}

fn track(event: &Value) -> Track {
    let number = |key: &str| event[key].as_u64().expect("a number");
    (number("pid"), number("tid"))
}

fn events(trace: &Value) -> &[Value] {
    trace["traceEvents"].as_array().expect("events")
}

fn slices(trace: &Value) -> BTreeMap<Track, Vec<Slice>> {
    let mut slices: BTreeMap<Track, Vec<Slice>> = BTreeMap::new();
    for event in events(trace).iter().filter(|event| event["ph"] == "X") {
        let start = nanos(event, "ts");
        let slice = (
            start,
            start + nanos(event, "dur"),
            event["args"]["op"].as_u64().unwrap(),
        );
        slices.entry(track(event)).or_default().push(slice);
    }
    slices
}

/// What viewers take for granted.
fn check(trace: &Value, ranks: usize) {
    let slices = slices(trace);
    assert_eq!(slices.len(), 2 * ranks, "two streams a rank");
    for (track, slices) in &slices {
        let mut sorted = slices.clone();
        sorted.sort_unstable();
        for two in sorted.windows(2) {
            assert!(two[0].1 <= two[1].0, "{track:?}: {two:?} overlap");
        }
    }
    let mut ends: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
    for event in events(trace) {
        if event["ph"] == "s" || event["ph"] == "f" {
            let inside = |&(start, end, _): &Slice| (start..end).contains(&nanos(event, "ts"));
            assert!(
                slices[&track(event)].iter().any(inside),
                "{event} is in no slice"
            );
            let id = event["id"].as_u64().unwrap();
            ends.entry(id).or_default().push(event);
        }
    }
    assert!(!ends.is_empty(), "no arrows");
    for (id, pair) in ends {
        let [from, to] = pair[..] else {
            panic!("arrow {id} has {} ends", pair.len());
        };
        assert_eq!((&from["ph"], &to["ph"]), (&"s".into(), &"f".into()));
        assert!(nanos(from, "ts") <= nanos(to, "ts"), "{from} {to}");
    }
    for pid in 1..=ranks as u64 {
        let counts = events(trace)
            .iter()
            .filter(|event| event["ph"] == "C" && event["pid"] == pid);
        let last = counts.max_by_key(|event| nanos(event, "ts")).unwrap();
        assert_eq!(last["args"]["network"], 0.0, "the rate ends at none");
    }
}

#[test]
fn a_simulated_step_is_whole() {
    let trace = trace_of(SIMULATED);
    check(&trace, 16);
    let about = &trace["otherData"];
    assert_eq!(about["times"], "simulated");
    assert_eq!(about["settings"]["cluster"]["gpus"], 16);
    // The same step as the breakdown tells.
    let plain = SIMULATED.replace("--export perfetto", "--format json");
    let breakdown = trace_of(&plain);
    let last = slices(&trace).values().flatten().map(|slice| slice.1).max();
    assert_eq!(last.unwrap(), breakdown["step_time_ns"].as_u64().unwrap());
}

#[test]
fn what_is_sent_adds_up() {
    let trace = trace_of(SIMULATED);
    let exchanges = || {
        events(&trace)
            .iter()
            .filter(|event| event["name"] == "exchange")
    };
    let sum = |key: &str| {
        exchanges()
            .map(|event| event["args"][key].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!(sum("bytes_sent"), sum("bytes_received"));
    // The counters' rates times the time they hold are the same bytes.
    let mut counted = 0.0;
    for exchange in exchanges() {
        let at = |event: &&Value| {
            event["ph"] == "C"
                && event["pid"] == exchange["pid"]
                && event["ts"] == exchange["ts"]
                && event["args"]
                    .as_object()
                    .unwrap()
                    .values()
                    .any(|rate| *rate != 0.0)
        };
        if let Some(counter) = events(&trace).iter().find(at) {
            let rates = counter["args"].as_object().unwrap().values();
            let rate: f64 = rates.map(|rate| rate.as_f64().unwrap()).sum();
            counted += rate * 1e9 * nanos(exchange, "dur") as f64 * 1e-9;
        }
    }
    let sent = sum("bytes_sent") as f64;
    assert!((counted - sent).abs() < 1e-6 * sent, "{counted} {sent}");
}

/// Weights gathered and gradients reduced go over wires, too.
#[test]
fn rings_are_counted_as_they_send() {
    let trace = trace_of("simulate --gpus 16 --adaptive-r 0 --export perfetto");
    let rings = ["all-gather", "reduce-scatter"];
    let first = events(&trace)
        .iter()
        .find(|event| rings.iter().any(|ring| event["name"] == *ring))
        .unwrap();
    let rates = events(&trace)
        .iter()
        .find(|event| {
            event["ph"] == "C" && event["pid"] == first["pid"] && event["ts"] == first["ts"]
        })
        .unwrap()["args"]
        .clone();
    // Eight rings, each leaving the node at another GPU.
    let [node, network] = ["in node", "network"].map(|key| rates[key].as_f64().unwrap());
    assert!(
        network > 0.0 && (node / network - 7.0).abs() < 1e-3,
        "{rates}"
    );
}

#[test]
fn an_executed_step_has_the_same_form() {
    let trace = trace_of(EXECUTED);
    assert_eq!(trace["otherData"]["times"], "measured");
    assert_eq!(slices(&trace).len(), 8);
}

#[test]
fn ranks_can_be_chosen() {
    let shown = |more: &str| {
        let trace = trace_of(&format!("simulate --gpus 128 --export perfetto {more}"));
        slices(&trace).len() / 2
    };
    assert_eq!(shown("--export-ranks all"), 128);
    assert_eq!(shown("--export-ranks 0-3,17"), 5);
    assert_eq!(shown(""), 8, "all ranks are alike: the first node");
    let args = "simulate --gpus 16 --export perfetto --export-ranks 12-16";
    let args: Vec<&str> = args.split_whitespace().collect();
    let ran = moeplan_args(&args);
    assert_eq!(ran.exit, Exit::BadInput);
    assert!(ran.stderr.contains("--export-ranks"), "{}", ran.stderr);
    assert!(ran.stderr.contains("0 to 15, found 16"), "{}", ran.stderr);
}

/// How many events of a kind there are.
fn count(trace: &Value, ph: &str) -> usize {
    let events = events(trace).iter();
    events.filter(|event| event["ph"] == ph).count()
}

/// What `script` finds when it opens a timeline in the viewer that a variable names; none, and said, without one.
#[expect(clippy::print_stderr, reason = "what is not checked must be said")]
fn opened(script: &str, viewer: &str, timeline: &str, questions: &[&str]) -> Option<Value> {
    let (Ok(modules), Ok(ui)) = (std::env::var("MOEPLAN_PLAYWRIGHT"), std::env::var(viewer)) else {
        eprintln!(
            "SKIPPED LOUDLY: {script} opened no timeline (set {viewer} and MOEPLAN_PLAYWRIGHT as .ci/viewers.sh does)"
        );
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    std::fs::write(&path, timeline).unwrap();
    let ran = Command::new("node")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(script))
        .arg(&ui)
        .arg(&path)
        .args(questions)
        .env("NODE_PATH", &modules)
        .output()
        .expect("node");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    Some(serde_json::from_slice(&ran.stdout).expect("JSON"))
}

/// The viewer that the format was made for, in Chromium; `.ci/run` fetches both where it can.
#[test]
fn the_viewer_of_the_format_agrees() {
    let text = exported(SIMULATED);
    let Some(found) = opened("check_trace.mjs", "MOEPLAN_TRACE_VIEWER", &text, &[]) else {
        return;
    };
    let trace: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(found["warnings"], json!([]));
    assert_eq!(found["processes"].as_array().unwrap().len(), 16);
    assert_eq!(found["processes"][9], "node 1 GPU 1 (rank 9) (pid 10)");
    assert_eq!(found["threads"], 32);
    assert_eq!(found["slices"], count(&trace, "X"));
    assert_eq!(found["arrows"], count(&trace, "s"));
    assert_eq!(found["counters"], 16);
    let ends = slices(&trace).into_values().flatten().map(|slice| slice.1);
    let end_us = ends.max().unwrap() as f64 * 1e-3;
    assert!((found["end_us"].as_f64().unwrap() - end_us).abs() < 1e-6 * end_us);
}

/// What Perfetto lost or could not place.
const LOST: &str = "select name, value from stats where severity != 'info' and value > 0";

/// Every slice and its track; what a stream does is never nested.
const SLICES: &str = "include perfetto module slices.with_context; select pid, process_name, tid, thread_name, \
                      ts, dur, name, extract_arg(arg_set_id, 'args.op'), depth from thread_slice";

/// Every arrow by the slices that it joins.
const ARROWS: &str = "include perfetto module slices.with_context; select \
                      a.tid, extract_arg(a.arg_set_id, 'args.op'), b.tid, extract_arg(b.arg_set_id, 'args.op') \
                      from flow join thread_slice a on a.id = slice_out join thread_slice b on b.id = slice_in";

/// Every value of a counter, in bytes a second.
const RATES: &str = "select pid, track.name, ts, cast(round(value * 1e9) as int) from counter \
                     join process_counter_track track on track.id = track_id join process using (upid)";

/// In one order, whichever the rows came in.
fn sorted(rows: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let mut rows: Vec<Value> = rows.into_iter().collect();
    rows.sort_by_cached_key(Value::to_string);
    rows
}

/// The rows of [`SLICES`], [`ARROWS`] and [`RATES`] as the file has them.
fn written(trace: &Value) -> [Vec<Value>; 3] {
    let all = |ph: &'static str| events(trace).iter().filter(move |event| event["ph"] == ph);
    let name = |what: &str, key: &str, number: &Value| {
        let named = all("M").find(|event| event["name"] == what && event[key] == *number);
        &named.unwrap()["args"]["name"]
    };
    let rows_of_slices = all("X").map(|slice| {
        let (pid, tid, op) = (&slice["pid"], &slice["tid"], &slice["args"]["op"]);
        let process = name("process_name", "pid", pid);
        let thread = name("thread_name", "tid", tid);
        let (ts, dur) = (nanos(slice, "ts"), nanos(slice, "dur"));
        json!([pid, process, tid, thread, ts, dur, slice["name"], op, 0])
    });
    let slices = slices(trace);
    let op_at = |end: &Value| {
        let inside = |slice: &&Slice| (slice.0..slice.1).contains(&nanos(end, "ts"));
        slices[&track(end)].iter().find(inside).unwrap().2
    };
    let arrows = all("s").map(|from| {
        let to = all("f").find(|to| to["id"] == from["id"]).unwrap();
        json!([from["tid"], op_at(from), to["tid"], op_at(to)])
    });
    let rates = all("C").flat_map(|event| {
        event["args"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, rate)| {
                let name = format!("{} {key}", event["name"].as_str().unwrap());
                let rate = (rate.as_f64().unwrap() * 1e9).round() as u64;
                json!([event["pid"], name, nanos(event, "ts"), rate])
            })
    });
    [sorted(rows_of_slices), sorted(arrows), sorted(rates)]
}

/// Perfetto itself: its UI, whose trace processor reads the file, opened in a browser. It drops what it cannot place and
/// says so in `stats`.
#[test]
fn perfetto_reads_all_of_it() {
    for args in [
        SIMULATED,
        "simulate --gpus 16 --adaptive-r 0 --export perfetto",
        EXECUTED,
    ] {
        let text = exported(args);
        let questions = [LOST, SLICES, ARROWS, RATES];
        let Some(found) = opened("check_perfetto.mjs", "MOEPLAN_PERFETTO", &text, &questions)
        else {
            return;
        };
        let rows = |found: &Value| found.as_array().unwrap().clone();
        let [lost, answers @ ..] = &rows(&found["answers"])[..] else {
            panic!("no answers");
        };
        assert_eq!(*lost, json!([]), "{args}");
        let trace = serde_json::from_str(&text).unwrap();
        for (read, written) in answers.iter().zip(written(&trace)) {
            let read = sorted(rows(read));
            let differ = read
                .iter()
                .zip(&written)
                .find(|(read, written)| read != written);
            assert_eq!(differ, None, "{args}");
            assert_eq!(read.len(), written.len(), "{args}");
        }
        // A track in the UI is a GPU, named with the number of its process.
        let gpus = events(&trace)
            .iter()
            .filter(|event| event["name"] == "process_name");
        let gpus =
            gpus.map(|gpu| format!("{} {}", gpu["args"]["name"].as_str().unwrap(), gpu["pid"]));
        assert_eq!(
            sorted(rows(&found["shown"])),
            sorted(gpus.map(Value::from)),
            "{args}"
        );
        assert_eq!(found["wrong"], json!([]), "{args}");
    }
}
