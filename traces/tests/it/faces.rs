//! The two faces of the format: what one holds, the other holds; both stream.

use std::io::{Cursor, Write};

use moeplan_traces::{
    ImportOptions, ParquetWriter, RoutingStep, TokenStep, TraceMeta, TraceStep, TraceWriter, open,
};
use proptest::prelude::*;

fn as_csv(meta: &TraceMeta, steps: &[TraceStep]) -> Vec<u8> {
    let mut writer = TraceWriter::new(Vec::new(), "t.csv", meta.clone()).unwrap();
    steps
        .iter()
        .for_each(|step| writer.write_step(step).unwrap());
    writer.finish().unwrap()
}

fn as_parquet(meta: &TraceMeta, steps: &[TraceStep]) -> Vec<u8> {
    let mut writer = ParquetWriter::new(Vec::new(), "t.parquet", meta.clone()).unwrap();
    steps
        .iter()
        .for_each(|step| writer.write_step(step).unwrap());
    writer.finish().unwrap()
}

fn read(bytes: &[u8]) -> (TraceMeta, Vec<TraceStep>) {
    let options = ImportOptions::default();
    let mut source = open(Cursor::new(bytes.to_vec()), "t", &options).unwrap();
    assert!(source.is_canonical());
    let mut steps = Vec::new();
    while let Some(step) = source.next_step().unwrap() {
        steps.push(step);
    }
    (source.meta().clone(), steps)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

/// Steps of tokens, with or without scores; ranks may have none.
fn traces() -> impl Strategy<Value = (TraceMeta, Vec<TraceStep>)> {
    let sizes = (1_usize..4, 1_u32..4, 4_usize..9, any::<[bool; 2]>());
    let texts = prop::collection::vec("[a-zé:#,\"]{0,9}", 3);
    (sizes, texts, any::<u32>(), 1_u64..6).prop_map(
        |((ranks, top_k, experts, flags), texts, seed, steps)| {
            let [per_token, has_scores] = flags;
            let mut state = seed;
            let mut next = |most: usize| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as usize % most
            };
            let mut made = Vec::new();
            for step in 0..steps {
                for layer in [0, 3] {
                    let tokens: Vec<usize> = (0..ranks)
                        .map(|rank| next(5) + usize::from(rank == 0))
                        .collect();
                    let total: usize = tokens.iter().sum();
                    let mut ids = Vec::new();
                    for _ in 0..total {
                        let first = next(experts);
                        ids.extend(
                            (0..top_k as usize).map(|choice| ((first + choice) % experts) as u32),
                        );
                    }
                    let scores = has_scores.then(|| {
                        ids.iter()
                            .map(|_| next(1 << 20) as f32 / 7.0e4 - 3.0)
                            .collect()
                    });
                    let step =
                        TokenStep::new(step * 3, layer, top_k, experts, &tokens, ids, scores)
                            .unwrap();
                    made.push(match per_token {
                        true => TraceStep::Tokens(step),
                        false => TraceStep::Counts(step.counts()),
                    });
                }
            }
            let mut meta = TraceMeta::of_step(&made[0].clone().into_counts());
            meta.tokens_per_rank = None;
            meta.model = texts[0].clone();
            meta.reduced = vec![texts[1].clone(), texts[2].clone()];
            meta.notes = texts;
            (meta, made)
        },
    )
}

proptest! {
    #[test]
    fn both_faces_hold_the_same((meta, steps) in traces()) {
        let (csv, parquet) = (as_csv(&meta, &steps), as_parquet(&meta, &steps));
        prop_assert_eq!(read(&csv), (meta.clone(), steps.clone()));
        prop_assert_eq!(read(&parquet), (meta.clone(), steps.clone()));
        // From one to the other and back, byte by byte.
        let (meta, steps) = read(&parquet);
        prop_assert_eq!(as_csv(&meta, &steps), csv.clone());
        let (meta, steps) = read(&csv);
        prop_assert_eq!(as_parquet(&meta, &steps), parquet);
        prop_assert_eq!(read(&gzip(&csv)), (meta.clone(), steps.clone()));
        prop_assert_eq!(read(&zstd::encode_all(csv.as_slice(), 0).unwrap()), (meta, steps));
    }
}

#[test]
fn token_rows_are_strict() {
    const META: &str = "# format: moeplan-trace/1\n# model: m\n# experts: 4\n# top_k: 2\n# source_ranks: 2\n# tokens_per_rank: varies\n# origin: o\n# licence: l\n# recorded_by: r\n";
    const HEADER: &str = "step,layer,source_rank,token,expert0,expert1,score0,score1\n";
    let refuse = |rows: &str, words: &[&str]| {
        let text = [META, HEADER, rows].concat().into_bytes();
        let read = open(Cursor::new(text), "t.csv", &ImportOptions::default())
            .unwrap()
            .read();
        let error = read.unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{word} in {error}");
        }
    };
    refuse("", &["t.csv:10", "at least one step"]);
    refuse("0,0,0,0,1,1,0.5,0.5\n", &["t.csv:11", "different experts"]);
    refuse("0,0,0,0,1,4,0.5,0.5\n", &["t.csv:11: `expert1`", "0 to 3"]);
    refuse("0,0,0,0,1,2,NaN,0.5\n", &["t.csv:11: `score0`", "finite"]);
    refuse("0,0,0,0,1,2,0.5\n", &["t.csv:11", "8 columns"]);
    refuse(
        "0,0,0,1,1,2,0.5,0.5\n",
        &["t.csv:11: `token`", "expected 0"],
    );
    refuse("0,0,2,0,1,2,0.5,0.5\n", &["t.csv:11: `source_rank`"]);
    refuse(
        "0,0,1,0,1,2,1,1\n0,0,0,0,1,2,1,1\n",
        &["t.csv:12: `source_rank`", "1 to 1"],
    );
    refuse(
        "1,0,0,0,1,2,1,1\n0,0,0,0,1,2,1,1\n",
        &["t.csv:12: `step`", "ascending"],
    );
}

#[test]
fn a_bomb_is_one_error() {
    let refuse = |bytes: Vec<u8>, words: &[&str]| {
        let source = open(Cursor::new(bytes), "bomb", &ImportOptions::default());
        let error = source
            .and_then(|source| source.read())
            .unwrap_err()
            .to_string();
        for word in words {
            assert!(error.contains(word), "{word} in {error}");
        }
    };
    let zeros = vec![b'#'; 256 << 20];
    let bomb = zstd::encode_all(zeros.as_slice(), 0).unwrap();
    assert!(bomb.len() < 64 << 10);
    refuse(bomb, &["bomb:1", "a line of at most"]);
    let mut lines = b"{\"a\":1}\n".repeat(32 << 20);
    lines.truncate(256 << 20);
    refuse(
        zstd::encode_all(lines.as_slice(), 0).unwrap(),
        &["bomb:", "1000 times the size"],
    );
    let quoted = [b"L0,L1\n\"".as_slice(), &zeros].concat();
    refuse(gzip(&quoted), &["bomb:2", "a line of at most"]);
    refuse(gzip(&as_csv_head())[..40].to_vec(), &["bomb"]);
}

fn as_csv_head() -> Vec<u8> {
    let step = RoutingStep::new(0, 0, 1, 2, vec![1, 0]).unwrap();
    as_csv(&TraceMeta::of_step(&step), &[TraceStep::Counts(step)])
}
