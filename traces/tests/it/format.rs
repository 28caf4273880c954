//! The trace format: round trips, and every way a file can be wrong.

use moeplan_traces::{RoutingSpec, RoutingStep, TraceError, TraceMeta, TraceReader, TraceWriter};
use proptest::prelude::*;

use crate::routing::shape;

const META: &str = "\
# format: moeplan-trace/1
# model: toy
# experts: 4
# top_k: 2
# source_ranks: 2
# tokens_per_rank: 4
# origin: by hand
# licence: CC0
# recorded_by: nobody
# note: two: colons
";
const HEADER: &str = "step,layer,source_rank,e0,e1,e2,e3\n";
const ROWS: &str = "0,0,0,4,2,1,1\n0,0,1,2,2,2,2\n5,0,0,3,1,2,2\n5,0,1,0,4,0,4\n";

fn read(bytes: &[u8]) -> Result<(TraceMeta, Vec<RoutingStep>), TraceError> {
    let reader = TraceReader::new(bytes, "t.csv")?;
    let meta = reader.meta().clone();
    Ok((meta, reader.collect::<Result<_, _>>()?))
}

/// Reads metadata, header and rows; the error must begin with `place` and hold `words`.
fn refuse(text: impl AsRef<[u8]>, place: &str, words: &str) {
    let error = read(text.as_ref()).unwrap_err().to_string();
    let expected = format!("t.csv{place}: ");
    assert!(error.starts_with(&expected), "{expected} in {error}");
    assert!(error.contains(words), "{words} in {error}");
}

#[test]
fn a_good_file_reads_and_writes_back_the_same() {
    let text = [META, HEADER, ROWS].concat();
    let (meta, steps) = read(text.as_bytes()).unwrap();
    assert_eq!(meta.tokens_per_rank, Some(4));
    assert_eq!(meta.notes, ["two: colons"]);
    assert_eq!(steps.len(), 2);
    assert_eq!(steps[1].counts(1), [0, 4, 0, 4]);
    let mut writer = TraceWriter::new(Vec::new(), "t.csv", meta).unwrap();
    for step in &steps {
        writer.write(step).unwrap();
    }
    assert_eq!(String::from_utf8(writer.finish().unwrap()).unwrap(), text);
    // Files that went through Windows.
    let (_, same) = read(text.replace('\n', "\r\n").as_bytes()).unwrap();
    assert_eq!(same, steps);
}

#[test]
fn bad_rows_are_refused() {
    let rows = |rows: &str, place: &str, words: &str| {
        refuse([META, HEADER, rows].concat(), place, words);
    };
    rows("", ":11", "at least one step");
    rows("0,0,0,4,2,1,1\n", ":12", "source rank 1 of step 0, layer 0");
    rows("0,0,0,4,2,1,1", ":12", "line feed at the end");
    rows("0,0,0,4,2,1\n", ":12", "7 columns, found 6");
    rows("0,0,0,4,2,1,1,1\n", ":12", "7 columns, found 8");
    rows("\n", ":12", "an empty line");
    rows("0,0,0,-4,2,1,1\n", ":12: `e0`", "\"-4\"");
    rows("0,0,0,4,NaN,1,1\n", ":12: `e1`", "\"NaN\"");
    rows("0,0,0,4,2,1.5,1\n", ":12: `e2`", "\"1.5\"");
    rows("0,0,0,4,2,1,+1\n", ":12: `e3`", "\"+1\"");
    rows("0,0,0,4,2,1, 1\n", ":12: `e3`", "\" 1\"");
    rows("0,0,0,4,2,1,\n", ":12: `e3`", "\"\"");
    rows(
        "0,0,0,1000000000000000000,2,1,1\n",
        ":12: `e0`",
        "from 0 to 4294967295",
    );
    rows(
        "0,0,0,99999999999999999999999,2,1,1\n",
        ":12: `e0`",
        "whole number",
    );
    rows("0,0,0,4,2,1,0\n", ":12", "divisible by top_k");
    rows("0,0,0,6,2,0,0\n", ":12: `e0`", "at most 4 copies");
    rows("0,0,0,3,1,1,1\n", ":12", "4 tokens (tokens_per_rank)");
    rows("x,0,0,4,2,1,1\n", ":12: `step`", "\"x\"");
    rows("0,5000000000,0,4,2,1,1\n", ":12: `layer`", "whole number");
    rows("0,0,1,4,2,1,1\n", ":12: `source_rank`", "expected 0");
    rows(
        "0,0,0,4,2,1,1\n0,0,0,4,2,1,1\n",
        ":13: `source_rank`",
        "expected 1",
    );
    rows(
        "0,0,0,4,2,1,1\n1,0,1,4,2,1,1\n",
        ":13",
        "source rank 1 of step 0",
    );
    let again = ROWS.to_owned() + "5,0,0,4,2,1,1\n";
    rows(&again, ":16: `step`", "ascending steps");
    rows(&(ROWS.to_owned() + META), ":16", "7 columns");
}

#[test]
fn bad_headers_are_refused() {
    let header = |header: &str, place: &str, words: &str| {
        refuse([META, header, ROWS].concat(), place, words);
    };
    header("", ":11: `step`", "\"0\"");
    header(
        "step,layer,rank,e0,e1,e2,e3\n",
        ":11: `source_rank`",
        "\"rank\"",
    );
    header(
        "step,layer,source_rank,e0,e0,e2,e3\n",
        ":11: `e1`",
        "\"e0\"",
    );
    header(
        "step,layer,source_rank,e0,e1,e2\n",
        ":11: `e3`",
        "end of the line",
    );
    header(
        "step,layer,source_rank,e0,e1,e2,e3,e4\n",
        ":11",
        "another column \"e4\"",
    );
    header(&[HEADER, HEADER].concat(), ":12: `step`", "\"step\"");
}

#[test]
fn bad_metadata_is_refused() {
    let meta = |from: &str, to: &str, place: &str, words: &str| {
        assert!(META.contains(from));
        refuse(
            [&META.replace(from, to), HEADER, ROWS].concat(),
            place,
            words,
        );
    };
    refuse("", "", "the end of the file");
    refuse(META, ":10", "the end of the file");
    refuse([HEADER, ROWS].concat(), ":1", "# format: moeplan-trace/1");
    meta("trace/1", "trace/2", ":1", "# format: moeplan-trace/1");
    meta("# model: toy\n", "", ":10", "# model: ...");
    meta("# model: toy\n", "# model toy\n", ":2", "# key: value");
    meta(
        "# model: toy\n",
        "# mode: toy\n",
        ":2",
        "one of format, model",
    );
    meta("origin: by hand", "model: b", ":7: `model`", "once");
    meta("experts: 4", "experts: 0", ":3: `experts`", "at least 1");
    meta(
        "experts: 4",
        "experts: 4e9",
        ":3: `experts`",
        "whole number",
    );
    meta(
        "experts: 4",
        "experts: 4000000000",
        ":3: `experts`",
        "whole number",
    );
    meta("top_k: 2", "top_k: 5", ":4: `top_k`", "0 to 4");
    meta(
        "ranks: 2",
        "ranks: 9999999999",
        ":5: `source_ranks`",
        "whole number",
    );
    meta("rank: 4", "rank: four", ":6: `tokens_per_rank`", "\"four\"");
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let mut bytes = [META, HEADER, ROWS].concat().into_bytes();
    let at = META.len() + HEADER.len() + 3;
    bytes[at] = 0xff;
    refuse(&bytes, ":12", "byte 0xff");
    refuse([0, 159, 146, 150, b'\n'], ":1", "UTF-8");
}

#[test]
fn reading_stops_at_the_first_error() {
    let text = [META, HEADER, "x\n", ROWS].concat();
    let mut reader = TraceReader::new(text.as_bytes(), "t.csv").unwrap();
    assert!(reader.next().unwrap().is_err());
    assert!(reader.next().is_none());
}

#[test]
fn the_writer_refuses_what_could_not_be_read() {
    let step =
        |step| RoutingSpec::generate(&"zipf:1".parse().unwrap(), &shape(2, 4, 4, 2), 1, step, 0);
    let meta = TraceMeta::of_step(&step(0).unwrap());
    let writer = |meta: &TraceMeta| TraceWriter::new(Vec::new(), "t.csv", meta.clone());
    assert!(writer(&meta).unwrap().finish().is_err(), "no step");
    let mut twice = writer(&meta).unwrap();
    twice.write(&step(1).unwrap()).unwrap();
    assert!(twice.write(&step(1).unwrap()).is_err(), "same step again");
    let mut more = meta.clone();
    more.experts = 5;
    assert!(writer(&more).unwrap().write(&step(0).unwrap()).is_err());
    let mut more = meta.clone();
    more.tokens_per_rank = Some(5);
    assert!(writer(&more).unwrap().write(&step(0).unwrap()).is_err());
    let mut two_lines = meta;
    two_lines.model = "a\n# top_k: 1".into();
    assert!(writer(&two_lines).is_err());
}

proptest! {
    #[test]
    fn round_trip(
        (ranks, experts) in (1_usize..5, 1_usize..20),
        tokens in 1_u32..50,
        seed: u64,
        gaps in prop::collection::vec(1_u64..1000, 1..6),
        text in "[a-zé:#,\"]{0,9}",
        even: bool,
    ) {
        let shape = shape(ranks, experts, tokens, 1 + u32::from(experts > 1));
        let spec: RoutingSpec = "dirichlet:0.5".parse().unwrap();
        let mut at = 0;
        let mut steps = Vec::new();
        for gap in gaps {
            at += gap;
            for layer in [1, 4] {
                steps.push(spec.generate(&shape, seed, at, layer).unwrap());
            }
        }
        let mut meta = TraceMeta::of_step(&steps[0]);
        meta.model = text.clone();
        meta.notes = vec![text.clone(), text];
        if !even {
            meta.tokens_per_rank = None;
        }
        let mut writer = TraceWriter::new(Vec::new(), "t.csv", meta.clone()).unwrap();
        for step in &steps {
            writer.write(step).unwrap();
        }
        let bytes = writer.finish().unwrap();
        prop_assert_eq!(read(&bytes).unwrap(), (meta, steps));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes);
        let _ = read(&[META.as_bytes(), &bytes].concat());
        let _ = read(&[META.as_bytes(), HEADER.as_bytes(), &bytes].concat());
    }

    #[test]
    fn no_changed_file_panics(
        changes in prop::collection::vec((0_usize..400, "[0-9,#\\-\n]{0,3}"), 1..4),
        end in 0_usize..500,
    ) {
        let mut text = [META, HEADER, ROWS].concat();
        for (at, new) in changes {
            let at = at.min(text.len());
            let to = (at + new.len()).min(text.len());
            text.replace_range(at..to, &new);
        }
        let _ = read(&text.as_bytes()[..end.min(text.len())]);
    }
}
