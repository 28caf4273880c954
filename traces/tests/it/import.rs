//! Public layouts.

use std::io::{Cursor, Write};
use std::path::PathBuf;

use moeplan_traces::{
    ImportOptions, ParquetWriter, RoutingStep, StepStats, Trace, TraceError, TraceWriter, open,
};
use proptest::prelude::*;

fn import(text: &str, options: &ImportOptions) -> Result<Trace, TraceError> {
    read(text.as_bytes(), "t.csv", options)
}

/// All steps of a file.
pub(crate) fn read(bytes: &[u8], name: &str, options: &ImportOptions) -> Result<Trace, TraceError> {
    open(Cursor::new(bytes.to_vec()), name, options)?.read()
}

fn refuse(text: &str, place: &str, words: &str) {
    let error = import(text, &small()).unwrap_err().to_string();
    let expected = format!("t.csv{place}: ");
    assert!(error.starts_with(&expected), "{expected} in {error}");
    assert!(error.contains(words), "{words} in {error}");
}

/// Two ranks of two tokens a step.
fn small() -> ImportOptions {
    ImportOptions {
        source_ranks: 2,
        tokens_per_rank: 2,
        ..ImportOptions::default()
    }
}

const TOKENS: &str = "\
doc,category,token,L3,L0
0,a,1,4 1,0 1
0,a,2,4 2,0 2
0,a,3,4 3,0 3
0,a,4,4 0,0 4
0,a,5,1 0,1 2
0,a,6,1 0,1 2
0,a,7,1 0,1 2
0,a,8,1 0,1 2
0,a,9,1 0,1 2
";

#[test]
fn per_token_ids_become_steps() {
    let trace = import(TOKENS, &small()).unwrap();
    assert_eq!(trace.layers(), [0, 3]);
    assert_eq!((trace.meta.experts, trace.meta.top_k), (8, 2));
    // Nine tokens: slices of four, two steps, one token left out.
    assert_eq!(trace.steps.len(), 4);
    assert_eq!(
        trace.meta.reduced,
        ["1 tokens left out that do not fill a step"]
    );
    let steps: Vec<&RoutingStep> = trace.steps_of_layer(3).collect();
    assert_eq!(steps[0].counts(0), [0, 1, 1, 0, 2, 0, 0, 0]);
    assert_eq!(steps[0].counts(1), [2, 2, 0, 0, 0, 0, 0, 0]);
    assert_eq!(steps[1].counts(0), [1, 0, 0, 1, 2, 0, 0, 0]);
    assert_eq!(steps[1].step(), 1);
}

#[test]
fn options_say_experts_and_choices() {
    let options = ImportOptions {
        experts: Some(5),
        top_k: Some(1),
        ..small()
    };
    let trace = import(TOKENS, &options).unwrap();
    assert_eq!((trace.meta.experts, trace.meta.top_k), (5, 1));
    assert_eq!(trace.steps[0].counts(0), [2, 0, 0, 0, 0]);
    let too_few = ImportOptions {
        experts: Some(4),
        ..small()
    };
    let error = import(TOKENS, &too_few).unwrap_err().to_string();
    assert!(error.contains("at least 5"), "{error}");
}

#[test]
fn bad_token_files_are_refused() {
    let header = "doc,category,token,L3,L0\n";
    let rows = |rows: &str, place: &str, words: &str| {
        refuse(&(header.to_owned() + rows), place, words);
    };
    rows("", "", "at least one token");
    rows("0,a,1,1 2,3 4\n", "", "found 1 tokens");
    rows("0,a,1,1 2\n", ":2", "5 columns");
    rows("0,a,1,1 2,3 x\n", ":2: `L0`", "\"x\"");
    rows("0,a,1,1 2,3 -1\n", ":2: `L0`", "\"-1\"");
    // Layers are read in ascending order, the first says how many there are.
    rows("0,a,1,1 2,3\n", ":2: `L3`", "1 expert ids");
    rows("0,a,1,1 2,3 4 5\n", ":2: `L3`", "3 expert ids");
    rows("0,a,1,1 1,3 4\n", ":2: `L3`", "different experts");
    rows("0,a,1,,3 4\n", ":2: `L3`", "2 expert ids");
    rows(
        "0,a,1,1000000000000000000 2,3 4\n",
        ":2: `L3`",
        "whole number",
    );
    refuse("doc,L0,L0\n", ":1: `L0`", "every layer once");
    refuse(
        "L0,L1,W1\n1 2,3 4,1 0\n",
        ":1",
        "scores of every layer, or of none",
    );
}

#[test]
fn counts_become_layers() {
    let text = "0,1,30\n0,0,10\n1,2,40\n";
    let trace = import(text, &small()).unwrap();
    assert_eq!(trace.layers(), [0, 1]);
    assert_eq!(trace.steps[0].all_counts(), [10, 30, 0, 0]);
    assert_eq!(trace.steps[1].all_counts(), [0, 0, 40, 0]);
    assert_eq!(trace.meta.tokens_per_rank, Some(40));
    let top_2 = ImportOptions {
        top_k: Some(2),
        ..small()
    };
    let error = import(text, &top_2).unwrap_err().to_string();
    assert!(error.contains("list 0"), "{error}");
    let uneven = import("0,0,1\n1,0,2\n", &small()).unwrap();
    assert_eq!(uneven.meta.tokens_per_rank, None);
}

#[test]
fn bad_count_files_are_refused() {
    refuse(
        "0,1,30\n0,1,10\n",
        ":2: `expert`",
        "every expert of list 0 once",
    );
    refuse("0,1,30\n0,2\n", ":2", "list_index,expert,count");
    refuse("0,1,30\n0,2,-1\n", ":2: `count`", "\"-1\"");
    refuse("0,1,30\n0,99999999,1\n", ":2: `expert`", "whole number");
    refuse("0,1,30\n0,2,1000000000000000000\n", ":2: `count`", "whole");
    refuse("0,\"(1, 2)\",30\n", ":1", "list_index,expert,count");
    refuse("", "", "an empty file");
    refuse("hello\n", ":1", "\"hello\"");
}

/// How a row of a wide file may be damaged or written otherwise.
fn rewritten(row: &str, how: u8) -> String {
    match how {
        // The same in other words: the whole row is then read closely.
        0 => row.replacen(',', ", ", 2),
        1 => row.replacen("doc", "\"a \"\"doc\"\"\"", 1),
        2 => row.replacen(' ', ";", 1),
        // Damage.
        3 => row.replacen(' ', "  x", 1),
        4 => format!("{row},7"),
        5 => row
            .rsplit_once(',')
            .map_or("", |(front, _)| front)
            .to_owned(),
        6 => row.replacen(' ', "", 1),
        7 => format!("{row} "),
        _ => row.to_owned(),
    }
}

proptest! {
    /// Lines are read in one pass where they are plain; no other way of reading may differ.
    #[test]
    fn plain_lines_are_read_as_all_others(
        ids in prop::collection::vec((0_u32..1100, 1_u32..7, 0_u8..20), 4..12),
    ) {
        let rows = ids.iter().enumerate().map(|(token, &(first, apart, how))| {
            let cell = |layer: u32| format!("{} {}", first + layer, first + layer + apart);
            rewritten(&format!("doc,{token},{},{}", cell(0), cell(1)), how)
        });
        let rows: Vec<String> = rows.collect();
        let file = |header: &str, rows: &[String]| format!("{header}\n{}\n", rows.join("\n"));
        let plain = file("doc,token,L0,L1", &rows);
        // With scores every row is read closely; a damaged row stays one.
        let longer: Vec<String> = rows.iter().map(|row| format!("{row},1 0,1 0")).collect();
        let close = file("doc,token,L0,L1,W0,W1", &longer);
        let [plain, close] = [plain, close].map(|text| import(&text, &small()));
        match (plain, close) {
            (Ok(plain), Ok(close)) => prop_assert_eq!(plain.steps, close.steps),
            (Err(_), Err(_)) => {}
            (plain, close) => prop_assert!(false, "{plain:?} {close:?}"),
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let read = |bytes: &[u8]| read(bytes, "t.csv", &small()).is_ok();
        read(&bytes);
        read(&[b"t,L0,L1\n".as_slice(), &bytes].concat());
        read(&[b"0,0,5\n".as_slice(), &bytes].concat());
    }
}

/// Files of the public captures, when they are at hand: `$MOEPLAN_DATA/traces` or
/// `../shared/data/traces` beside the workspace.
fn shared(name: &str) -> Option<Vec<u8>> {
    let data = match std::env::var_os("MOEPLAN_DATA") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
    };
    let path = data.join("traces").join(name);
    let bytes = std::fs::read(&path).ok();
    if bytes.is_none() {
        // Not by `eprintln!`, which cargo shows of failing tests only.
        let message = format!(
            "SKIPPED: no {}; set MOEPLAN_DATA to check it\n",
            path.display()
        );
        std::io::stderr().write_all(message.as_bytes()).unwrap();
    }
    bytes
}

#[test]
fn gpt_oss_capture() {
    let Some(bytes) = shared("gpt-oss-20b_decode.csv") else {
        return;
    };
    let trace = read(&bytes, "gpt-oss", &ImportOptions::default()).unwrap();
    assert_eq!((trace.meta.experts, trace.meta.top_k), (32, 4));
    // 10,724 tokens: slices of 1,340, 20 steps of 64 tokens a rank, 24 layers.
    assert_eq!(trace.steps.len(), 20 * 24);
    for step in &trace.steps {
        let f = StepStats::of(step).needed_capacity_factor;
        assert!((1.0..=8.0).contains(&f), "{f}");
    }
    // Every choice survives either face.
    let open = |bytes: Vec<u8>| open(Cursor::new(bytes), "t", &ImportOptions::default());
    let (mut csv, mut parquet) = (Vec::new(), Vec::new());
    {
        let mut source = open(bytes.clone()).unwrap();
        let meta = source.meta().clone();
        let mut csv = TraceWriter::new(&mut csv, "t", meta.clone()).unwrap();
        let mut parquet = ParquetWriter::new(&mut parquet, "t", meta).unwrap();
        while let Some(step) = source.next_step().unwrap() {
            csv.write_step(&step).unwrap();
            parquet.write_step(&step).unwrap();
        }
        csv.finish().unwrap();
        parquet.finish().unwrap();
    }
    let (mut csv, mut parquet) = (open(csv).unwrap(), open(parquet).unwrap());
    let mut source = open(bytes).unwrap();
    loop {
        let step = source.next_step().unwrap();
        assert_eq!(csv.next_step().unwrap(), step);
        assert_eq!(parquet.next_step().unwrap(), step);
        if step.is_none() {
            break;
        }
    }
}

#[test]
fn olmoe_counts() {
    for (name, experts, top_k, least, most) in [
        ("olmoe__expert_counts__arxiv.csv", 64, 8, 6.0, 7.9),
        ("olmoe__expert_counts__c4.csv", 64, 8, 2.4, 3.1),
        ("mistral__expert_counts__github.csv", 8, 2, 1.2, 1.4),
        ("olmoe__expert_counts_top1__arxiv.csv", 64, 1, 11.0, 37.0),
    ] {
        let Some(bytes) = shared(&format!("olmoe/{name}")) else {
            return;
        };
        let options = ImportOptions {
            top_k: Some(top_k),
            ..ImportOptions::default()
        };
        let trace = read(&bytes, name, &options).unwrap();
        assert_eq!(trace.meta.experts, experts, "{name}");
        assert_eq!(trace.meta.tokens_per_rank, Some(208_896), "{name}");
        assert_eq!(trace.layers(), [0, 1, 2], "{name}");
        for step in &trace.steps {
            let ratio = step.max_over_mean();
            assert!((least..most).contains(&ratio), "{name}: {ratio}");
        }
    }
}
