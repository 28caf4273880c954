//! What recorders really write.

use std::io::{Cursor, Write};
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, UInt32Builder};
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use moeplan_traces::{
    Assign, Axis, ImportOptions, ImportReport, RoutingStep, TokenStep, TraceError, TraceStep, open,
};

/// Steps and report of a file.
pub(crate) fn import(
    bytes: &[u8],
    options: &ImportOptions,
) -> Result<(Vec<TraceStep>, ImportReport), TraceError> {
    let mut source = open(Cursor::new(bytes.to_vec()), "t", options)?;
    let mut steps = Vec::new();
    while let Some(step) = source.next_step()? {
        steps.push(step);
    }
    Ok((steps, source.report()))
}

fn counts(steps: &[TraceStep]) -> Vec<RoutingStep> {
    steps.iter().cloned().map(TraceStep::into_counts).collect()
}

fn tokens(step: &TraceStep) -> &TokenStep {
    match step {
        TraceStep::Tokens(step) => step,
        TraceStep::Counts(step) => panic!("counts: {step:?}"),
    }
}

fn refuse(bytes: &[u8], options: &ImportOptions, words: &[&str]) {
    let error = import(bytes, options).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "{word} in {error}");
    }
}

fn plain() -> ImportOptions {
    ImportOptions::default()
}

fn top(top_k: u32) -> ImportOptions {
    ImportOptions {
        top_k: Some(top_k),
        ..plain()
    }
}

fn data(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/");
    std::fs::read(format!("{folder}{name}")).unwrap()
}

/// A NumPy file of little-endian numbers.
pub(crate) fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn le<const N: usize, T>(values: &[T], bytes: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(bytes).collect()
}

#[test]
fn sglang_stat_tensors_lose_warm_up_and_unused_steps() {
    let (steps, report) = import(&data("sglang-stat.pt"), &top(2)).or_show();
    assert!(report.layout.contains("SGLang"), "{}", report.layout);
    assert_eq!(
        report.dropped_identical_steps + report.dropped_uniform_steps,
        5
    );
    assert_eq!(report.dropped_empty_steps, 2);
    assert_eq!(report.dropped_empty_layers, 10);
    let steps = counts(&steps);
    assert_eq!(steps.len(), 5 * 2);
    assert_eq!((steps[0].step(), steps[0].layer()), (5, 1));
    assert_eq!(steps[0].all_counts(), [15, 15, 3, 7]);
    assert_eq!(steps[1].all_counts(), [7, 3, 15, 15]);
    let keep = ImportOptions {
        keep_repeats: true,
        ..top(2)
    };
    let (steps, report) = import(&data("sglang-stat.pt"), &keep).unwrap();
    assert_eq!(steps.len(), 12 * 3);
    assert_eq!(report.reduced(), [""; 0]);
}

/// Shows the error of a result that should be none.
trait Shown<T> {
    fn or_show(self) -> T;
}

impl<T> Shown<T> for Result<T, TraceError> {
    fn or_show(self) -> T {
        self.unwrap_or_else(|error| panic!("{error}"))
    }
}

#[test]
fn sglang_passes_are_mapped_to_logical_experts() {
    let (steps, report) = import(&data("sglang-per-pass.pt"), &plain()).or_show();
    assert!(report.layout.ends_with("per_pass"));
    let steps = counts(&steps);
    let keys: Vec<_> = steps
        .iter()
        .map(|step| (step.step(), step.layer()))
        .collect();
    assert_eq!(keys, [(5, 0), (5, 1), (6, 0), (6, 1), (7, 0), (7, 1)]);
    // Pass 5 is the third record: 3 2 3 4 5 6 on physical experts 0 1 2 3 0 1.
    assert_eq!(steps[0].all_counts(), [3 + 5, 2 + 6, 3, 4]);
    assert_eq!(steps[1].all_counts(), [4 + 5 + 6, 3, 2, 3]);
}

#[test]
fn sglang_tokens_keep_their_choices() {
    let (steps, report) = import(&data("sglang-per-token.pt"), &plain()).or_show();
    assert!(report.layout.ends_with("per_token"));
    assert_eq!(steps.len(), 4);
    assert_eq!(tokens(&steps[0]).ids(0), [0, 2, 1, 3]);
    assert_eq!(tokens(&steps[1]).ids(0), [3, 1, 2, 0]);
    // Physical 2 and 4 are logical 2 and 0 in layer 0.
    assert_eq!(tokens(&steps[2]).ids(0), [0, 2, 1, 3, 2, 0]);
    assert_eq!(tokens(&steps[2]).step(), 1);
}

#[test]
fn code_in_a_pickle_is_named_and_not_run() {
    refuse(
        &data("evil.pt"),
        &plain(),
        &["pickle, byte", ".system\"", "never run"],
    );
    assert!(!std::path::Path::new("/tmp/moeplan-was-here").exists());
    refuse(b"\x80\x04\x95\x01\x00", &plain(), &["bare pickle"]);
}

#[test]
fn arrays_of_counts_are_steps_layers_experts() {
    let values: Vec<i64> = (0..24).collect();
    let bytes = npy(
        "<i8",
        "(3, 2, 4)",
        &le(&values, |value| value.to_le_bytes()),
    );
    let (steps, _) = import(&bytes, &plain()).unwrap();
    let expected = counts(&steps);
    assert_eq!((expected[3].step(), expected[3].layer()), (1, 1));
    assert_eq!(expected[3].all_counts(), [12, 13, 14, 15]);
    let again = |bytes: Vec<u8>| counts(&import(&bytes, &plain()).unwrap().0);
    let same = |descr: &str, data: Vec<u8>| {
        assert_eq!(again(npy(descr, "(3, 2, 4)", &data)), expected, "{descr}");
    };
    same("<i4", le(&values, |&value| (value as i32).to_le_bytes()));
    same(">i4", le(&values, |&value| (value as i32).to_be_bytes()));
    same("<u2", le(&values, |&value| (value as u16).to_le_bytes()));
    same("|u1", le(&values, |&value| [value as u8]));
    same("<f4", le(&values, |&value| (value as f32).to_le_bytes()));
    same("<f8", le(&values, |&value| (value as f64).to_le_bytes()));
    same(">f8", le(&values, |&value| (value as f64).to_be_bytes()));
    // Packed, and in an archive with other arrays.
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(&bytes).unwrap();
    assert_eq!(again(gz.finish().unwrap()), expected);
    assert_eq!(
        again(zstd::encode_all(bytes.as_slice(), 0).unwrap()),
        expected
    );
    for method in [
        zip::CompressionMethod::Stored,
        zip::CompressionMethod::Deflated,
    ] {
        let archive = zipped(
            &[
                ("other.npy", &npy("<i4", "(1,)", &[0; 4])),
                ("logical_count.npy", &bytes),
            ],
            method,
        );
        assert_eq!(again(archive), expected, "{method}");
    }
}

fn zipped(files: &[(&str, &[u8])], method: zip::CompressionMethod) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in files {
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn axes_say_what_an_array_is() {
    let values: Vec<i32> = (0..12).collect();
    let bytes = npy(
        "<i4",
        "(2, 2, 3)",
        &le(&values, |value| value.to_le_bytes()),
    );
    let with = |axes: &[Axis]| ImportOptions {
        axes: Some(axes.to_vec()),
        ..plain()
    };
    let by_rank = import(&bytes, &with(&[Axis::Rank, Axis::Layer, Axis::Expert]))
        .unwrap()
        .0;
    let by_rank = counts(&by_rank);
    assert_eq!(by_rank.len(), 2);
    assert_eq!(by_rank[1].all_counts(), [3, 4, 5, 9, 10, 11]);
    let by_token = ImportOptions {
        source_ranks: 1,
        tokens_per_rank: 2,
        ..with(&[Axis::Token, Axis::Layer, Axis::Choice])
    };
    let (steps, _) = import(&bytes, &by_token).unwrap();
    assert_eq!(tokens(&steps[1]).ids(0), [3, 4, 5, 9, 10, 11]);
    let blocks = ImportOptions {
        assign: Assign::Blocks,
        ..by_token
    };
    assert_eq!(import(&bytes, &blocks).unwrap().0, steps);
    let wrong = |axes: &[Axis], word: &str| refuse(&bytes, &with(axes), &["axes", word]);
    wrong(&[Axis::Layer, Axis::Expert], "3 axes");
    wrong(&[Axis::Layer, Axis::Layer, Axis::Expert], "once");
    wrong(&[Axis::Expert, Axis::Layer, Axis::Rank], "last");
    wrong(&[Axis::Layer, Axis::Step, Axis::Expert], "first");
    wrong(&[Axis::Step, Axis::Layer, Axis::Choice], "together");
}

#[test]
fn damaged_arrays_are_refused() {
    let four = |values: &[i32]| le(values, |value| value.to_le_bytes());
    let whole = npy("<i4", "(1, 2, 2)", &four(&[1, 2, 3, 4]));
    refuse(&whole[..whole.len() - 1], &plain(), &["cut off"]);
    refuse(
        &[whole.as_slice(), b"x"].concat(),
        &plain(),
        &["nothing after"],
    );
    let negative = npy("<i4", "(1, 2, 2)", &four(&[1, 2, -3, 4]));
    refuse(
        &negative,
        &plain(),
        &["step 0, layer 1, rank 0, expert 0", "-3"],
    );
    let large = npy(
        "<i8",
        "(1, 1, 1)",
        &1_000_000_000_000_000_000_i64.to_le_bytes(),
    );
    refuse(&large, &plain(), &["expert 0", "1000000000000000000"]);
    let nan = npy("<f4", "(1, 1, 1)", &f32::NAN.to_le_bytes());
    refuse(&nan, &plain(), &["expert 0", "NaN"]);
    refuse(
        &npy("<f4", "(1, 1, 1)", &1.5_f32.to_le_bytes()),
        &plain(),
        &["1.5"],
    );
    refuse(&npy("|O", "(1, 1)", &[]), &plain(), &["descr", "pickle"]);
    refuse(&npy("<i4", "(0, 2)", &[]), &plain(), &["length 0"]);
    refuse(
        &npy("<i4", "(1, 9999999999999, 9)", &[]),
        &plain(),
        &["shape"],
    );
    refuse(
        &npy("<i4", "(1, 2, 2, 2, 2)", &[]),
        &plain(),
        &["2 to 4 axes"],
    );
    let odd = npy("<i4", "(1, 1, 2)", &four(&[1, 2]));
    refuse(&odd, &top(2), &["divisible by top_k"]);
}

#[test]
fn vllm_windows_are_divided() {
    let window = npy(
        "<i4",
        "(2, 1, 2)",
        &le(&[16_i32, 8, 24, 4], |value| value.to_le_bytes()),
    );
    let options = ImportOptions {
        dp_size: Some(8),
        ..plain()
    };
    let (steps, report) = import(&window, &options).unwrap();
    assert_eq!(counts(&steps)[0].all_counts(), [2, 1]);
    assert_eq!(counts(&steps)[1].all_counts(), [3, 1]);
    assert_eq!((report.divided_by, report.rounded_counts), (Some(8), 1));
    assert!(report.reduced()[0].contains("divided by 8"));
}

#[test]
fn count_lists_have_headers_or_not() {
    let sglang = b"layer_id,expert_id,count\n3,0,24990\n3,18,39249\n4,1,7\n";
    let (steps, report) = import(sglang, &plain()).unwrap();
    assert!(report.layout.contains("SGLang"));
    let steps = counts(&steps);
    assert_eq!(steps.len(), 2);
    assert_eq!((steps[0].layer(), steps[0].num_experts()), (3, 32));
    assert_eq!(steps[0].all_counts()[18], 39249);
    let more = b"step,rank,layer,expert,count\n0,0,1,0,5\n0,1,1,1,6\n2,0,1,1,7\n";
    let steps = counts(&import(more, &plain()).unwrap().0);
    assert_eq!((steps[1].step(), steps[1].source_ranks()), (2, 2));
    assert_eq!(steps[0].all_counts(), [5, 0, 0, 6]);
    refuse(
        b"layer_id,expert_id,count\n3,0,1\n3,0,1\n",
        &plain(),
        &["t:3", "every expert of list 3 once"],
    );
    refuse(
        b"layer_id,expert_id,count\n3,0,-1\n",
        &plain(),
        &["t:2: `count`"],
    );
    refuse(
        b"layer_id,expert_id,count\nlayer_id,expert_id,count\n",
        &plain(),
        &["t:2: `layer_id`"],
    );
    refuse(
        b"layer_id,expert_id,count\n3,0,\xff\n",
        &plain(),
        &["t:2", "UTF-8"],
    );
    refuse(
        b"layer_id,expert_id,count\n",
        &plain(),
        &["at least one count"],
    );
}

#[test]
fn matrices_are_source_rank_by_expert() {
    let steps = counts(&import(b"1,2,3,4\n5,6,7,8\n", &plain()).unwrap().0);
    assert_eq!(steps.len(), 1);
    assert_eq!((steps[0].source_ranks(), steps[0].num_experts()), (2, 4));
    let named = b"step,layer,source_rank,e0,e1\n0,0,0,1,2\n0,0,1,3,4\n0,2,0,5,6\n0,2,1,7,8\n";
    let steps = counts(&import(named, &plain()).unwrap().0);
    assert_eq!(steps[1].layer(), 2);
    assert_eq!(steps[1].all_counts(), [5, 6, 7, 8]);
    // Without a column of steps a new one begins where layers do.
    let layers = b"layer,e0,e1\n0,1,2\n1,3,4\n0,5,6\n1,7,8\n";
    let steps = counts(&import(layers, &plain()).unwrap().0);
    let keys: Vec<_> = steps
        .iter()
        .map(|step| (step.step(), step.layer()))
        .collect();
    assert_eq!(keys, [(0, 0), (0, 1), (1, 0), (1, 1)]);
    refuse(
        b"layer,e0,e1\n0,1,2\n0,1\n",
        &plain(),
        &["t:3", "3 columns"],
    );
    refuse(b"layer,e0,e1\n0,1,NaN\n", &plain(), &["t:2: `e1`", "NaN"]);
    refuse(
        b"layer,e0,e2\n0,1,2\n",
        &plain(),
        &["t:1: `e2`", "expert 1"],
    );
    refuse(
        b"step,e0,e1\n1,1,2\n0,3,4\n",
        &plain(),
        &["ascending steps"],
    );
    refuse(
        b"step,e0,e1\n0,1,2\n0,1,2\n1,3,4\n",
        &plain(),
        &["2 source ranks"],
    );
}

#[test]
fn json_lines_of_single_layers_or_all() {
    let small = ImportOptions {
        source_ranks: 1,
        tokens_per_rank: 2,
        ..plain()
    };
    // As vLLM loggers write it: a line that describes, then a line a token and layer.
    let long = br#"{"type": "meta", "model_id": "m", "top_k": 2}
{"type": "route", "token_idx": 0, "layer": 0, "topk_ids": [1, 2], "topk_weights": [0.75, 0.25]}
{"type": "route", "token_idx": 0, "layer": 1, "topk_ids": [3, 0], "topk_weights": [0.5, 0.5]}
{"type": "route", "token_idx": 1, "layer": 0, "topk_ids": [2, 1], "topk_weights": [0.6, 0.4]}
{"type": "route", "token_idx": 1, "layer": 1, "topk_ids": [3, 1], "topk_weights": [0.9, 0.1]}"#;
    let (steps, report) = import(long, &small).or_show();
    assert_eq!(report.skipped_lines, 1);
    assert_eq!(steps.len(), 2);
    assert_eq!(tokens(&steps[1]).ids(0), [3, 0, 3, 1]);
    assert_eq!(
        tokens(&steps[0]).scores(0),
        Some(&[0.75, 0.25, 0.6, 0.4][..])
    );
    let ids = |steps: &[TraceStep]| {
        steps
            .iter()
            .map(|step| tokens(step).all_ids().to_vec())
            .collect::<Vec<_>>()
    };
    for text in [
        "{\"expert_ids\": [[1, 2], [3, 0]]}\n{\"expert_ids\": [[2, 1], [3, 1]]}\n",
        "{\"routed_experts\": [[[1, 2], [3, 0]], [[2, 1], [3, 1]]]}\n",
        "{\"L1\": [3, 0], \"L0\": [1, 2]}\n\n{\"L0\": [2, 1], \"L1\": [3, 1]}\n",
    ] {
        let (found, _) = import(text.as_bytes(), &small).or_show();
        assert_eq!(ids(&found), ids(&steps), "{text}");
    }
    // Steps and ranks that the file tells.
    let told = "{\"step\": 4, \"rank\": 1, \"topk_ids\": [1]}\n{\"step\": 4, \"rank\": 0, \"topk_ids\": [0]}\n{\"step\": 9, \"rank\": 1, \"topk_ids\": [1]}\n";
    let (found, _) = import(told.as_bytes(), &small).or_show();
    assert_eq!((found[0].step(), found[1].step()), (4, 9));
    let found = counts(&found);
    assert_eq!(found[0].all_counts(), [1, 0, 0, 1]);
    assert_eq!(found[1].all_counts(), [0, 0, 0, 1]);
    let bad = |text: &str, words: &[&str]| refuse(text.as_bytes(), &small, words);
    bad("{\"topk_ids\": [1, 1]}\n", &["t:1: `ids`", "different"]);
    bad(
        "{\"topk_ids\": [1]}\n{\"topk_ids\": [1, 2]}\n",
        &["t:2: `ids`", "1 expert ids"],
    );
    bad("{\"topk_ids\": [-1]}\n", &["t:1: `ids`", "whole numbers"]);
    bad("{\"topk_ids\": [1.5]}\n", &["whole numbers"]);
    bad("{\"topk_ids\": [NaN]}\n", &["t:1", "column"]);
    bad(
        "{\"topk_ids\": [1], \"topk_ids\": [1]}\n",
        &["t:1", "`topk_ids`", "again"],
    );
    bad("{\"topk_ids\": [[1], [1, 2]]}\n", &["t:1", "`topk_ids`"]);
    bad("{\"topk_ids\": [1, [2]]}\n", &["equal depth"]);
    bad("{\"topk_ids\": [[[[1]]]]}\n", &["three levels"]);
    bad(
        "{\"topk_ids\": [1], \"topk_weights\": [1, 2]}\n",
        &["`scores`"],
    );
    bad(
        "{\"topk_ids\": [1], \"topk_weights\": [1e300]}\n",
        &["finite"],
    );
    bad("{\"layer\": \"x\", \"topk_ids\": [1]}\n", &["`layer`"]);
    bad("{\"topk_ids\": [1]\n", &["t:1", "EOF"]);
    bad(
        "{\"step\": 1, \"topk_ids\": [1]}\n{\"step\": 0, \"topk_ids\": [1]}\n",
        &["t:2", "ascending"],
    );
    bad("{\"a\": 1}\n", &["at least one token"]);
}

#[test]
fn scores_are_those_of_all_layers() {
    let rows = b"{\"L0\":[1,2],\"L1\":[3,4],\"W1\":[0.5,0.5]}\n";
    refuse(rows, &plain(), &["scores of every layer, or of none", ":1"]);
}

#[test]
fn token_columns_long_and_with_scores() {
    let small = ImportOptions {
        source_ranks: 1,
        tokens_per_rank: 1,
        ..plain()
    };
    let one = "layer,expert0,expert1,weight0,weight1\n0,3,1,0.75,0.25\n2,0,1,0.5,0.5\n";
    let two = "layer_id,topk_ids,topk_weights\n0,3 1,0.75 0.25\n2,\"[0, 1]\",\"[0.5, 0.5]\"\n";
    let wide = "L2,L0,W0,W2\n0 1,3 1,0.75 0.25,0.5 0.5\n";
    let expected = import(one.as_bytes(), &small).or_show().0;
    assert_eq!(expected[1].layer(), 2);
    assert_eq!(tokens(&expected[0]).scores(0), Some(&[0.75, 0.25][..]));
    for text in [two, wide] {
        assert_eq!(import(text.as_bytes(), &small).or_show().0, expected);
    }
    refuse(
        b"layer,topk_ids,topk_weights\n0,3 1,1\n",
        &small,
        &["t:2: `topk_weights`", "2 scores"],
    );
    refuse(
        b"layer,topk_ids,topk_weights\n0,3 1,1 inf\n",
        &small,
        &["finite"],
    );
    refuse(b"rank,L0,L1\n9999999,1,2\n", &small, &["t:2: `rank`"]);
}

#[test]
fn repeated_tokens_are_dropped_in_runs() {
    let row = |id: usize| format!("{} {},{} {}\n", id, id + 1, id + 2, id);
    let mut text = String::from("L0,L1\n");
    (0..20).for_each(|_| text += &row(5));
    (0..8).for_each(|id| text += &row(id));
    (0..15).for_each(|_| text += &row(9));
    (0..9).for_each(|id| text += &row(id));
    for assign in [Assign::Slices, Assign::Blocks] {
        let options = ImportOptions {
            source_ranks: 2,
            tokens_per_rank: 8,
            assign,
            ..plain()
        };
        let (steps, report) = import(text.as_bytes(), &options).or_show();
        assert_eq!(report.dropped_identical_tokens, 20, "{assign:?}");
        assert_eq!(report.left_out_tokens, 0, "{assign:?}");
        assert_eq!(steps.len(), 4, "{assign:?}");
        let keep = ImportOptions {
            keep_repeats: true,
            ..options
        };
        let (steps, report) = import(text.as_bytes(), &keep).or_show();
        assert_eq!((steps.len(), report.left_out_tokens), (6, 4), "{assign:?}");
    }
}

#[test]
fn columns_of_parquet_and_arrow_files() {
    let mut ids = ListBuilder::new(UInt32Builder::new());
    for row in [[3, 1], [0, 1], [2, 1], [0, 3]] {
        ids.append_value(row.map(Some));
    }
    let layers: ArrayRef = Arc::new(Int64Array::from(vec![0, 2, 0, 2]));
    let ids: ArrayRef = Arc::new(ids.finish());
    let batch = RecordBatch::try_from_iter([("layer", layers), ("topk_ids", ids)]).unwrap();
    let small = ImportOptions {
        source_ranks: 1,
        tokens_per_rank: 2,
        ..plain()
    };
    for (bytes, format) in [(parquet(&batch), "Parquet"), (arrow(&batch), "Arrow")] {
        let (steps, report) = import(&bytes, &small).or_show();
        assert!(report.layout.ends_with(format), "{}", report.layout);
        assert_eq!(tokens(&steps[1]).ids(0), [0, 1, 0, 3]);
        for cut in [bytes.len() / 2, bytes.len() - 1] {
            assert!(
                import(&bytes[..cut], &small).is_err(),
                "{format} cut at {cut}"
            );
        }
    }
    let column = |values: &[i64]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
    let matrix = RecordBatch::try_from_iter([
        ("layer", column(&[0, 0, 1, 1])),
        ("e0", column(&[1, 2, 3, 4])),
        ("e1", column(&[5, 6, 7, 8])),
    ]);
    let matrix = matrix.unwrap();
    for bytes in [parquet(&matrix), arrow(&matrix)] {
        let steps = counts(&import(&bytes, &plain()).or_show().0);
        assert_eq!(steps[1].all_counts(), [3, 7, 4, 8]);
    }
    let negative = RecordBatch::try_from_iter([("e0", column(&[1, -2]))]).unwrap();
    refuse(&parquet(&negative), &plain(), &["e0, row 1", "-2"]);
    let other = RecordBatch::try_from_iter([("price", column(&[1]))]).unwrap();
    refuse(&parquet(&other), &plain(), &["schema", "price"]);
}

fn parquet(batch: &RecordBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn arrow(batch: &RecordBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = arrow_ipc::writer::FileWriter::try_new(&mut bytes, &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    drop(writer);
    bytes
}

#[test]
fn files_of_single_ranks_are_joined() {
    let file = |rows: &[(u64, [u32; 4])]| {
        let mut text = String::from("step,layer,rank,expert0,expert1,expert2,expert3\n");
        for (step, counts) in rows {
            let [a, b, c, d] = counts;
            text += &format!("{step},0,0,{a},{b},{c},{d}\n");
        }
        Cursor::new(text.into_bytes())
    };
    let first = file(&[(0, [1, 2, 3, 4]), (1, [9, 0, 0, 1]), (3, [2, 2, 2, 2])]);
    let second = file(&[(1, [0, 5, 1, 4]), (2, [1, 1, 1, 1]), (3, [8, 0, 0, 0])]);
    let options = ImportOptions {
        top_k: Some(1),
        ..ImportOptions::default()
    };
    let files = vec![(first, "a".to_owned()), (second, "b".to_owned())];
    let mut source = moeplan_traces::open_ranks(files, &options).unwrap();
    let steps: Vec<RoutingStep> = source.by_ref().map(Result::unwrap).collect();
    assert_eq!(source.meta().source_ranks, 2);
    let found: Vec<_> = steps
        .iter()
        .map(|step| (step.step(), step.all_counts()))
        .collect();
    assert_eq!(
        found,
        [
            (1, &[9, 0, 0, 1, 0, 5, 1, 4][..]),
            (3, &[2, 2, 2, 2, 8, 0, 0, 0][..]),
        ]
    );
    // Step 0 of the first and step 2 of the second.
    assert_eq!(source.report().lacking_steps, 2);

    let wide = Cursor::new(b"step,layer,rank,expert0,expert1\n0,0,0,1,2\n".to_vec());
    let files = vec![
        (file(&[(0, [1; 4])]), "a".to_owned()),
        (wide, "b".to_owned()),
    ];
    let error = moeplan_traces::open_ranks(files, &options).unwrap_err();
    assert_eq!(error.place().name, "b");
}
