//! Bytes that nobody meant to write: every importer returns, with one error or a trace.

use std::io::Cursor;

use moeplan_traces::{
    Assign, ImportOptions, ParquetWriter, RoutingStep, TraceMeta, TraceStep, open,
};
use proptest::prelude::*;

use crate::layouts::npy;

/// Reads `bytes` in all ways that options allow; what is read must be sound, errors one line.
fn survive(bytes: &[u8]) {
    for assign in [Assign::Slices, Assign::Blocks] {
        let options = ImportOptions {
            source_ranks: 2,
            tokens_per_rank: 1,
            assign,
            ..ImportOptions::default()
        };
        let source = open(Cursor::new(bytes.to_vec()), "t", &options);
        match source.and_then(|source| source.read()) {
            Ok(trace) => assert!(!trace.steps.is_empty()),
            Err(error) => assert!(error.to_string().starts_with('t'), "{error}"),
        }
    }
}

fn data(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/");
    std::fs::read(format!("{folder}{name}")).unwrap()
}

/// A sound file of every layout.
fn seeds() -> Vec<Vec<u8>> {
    let numbers: Vec<u8> = (0..24_i32).flat_map(i32::to_le_bytes).collect();
    let step = RoutingStep::new(0, 0, 1, 3, vec![1, 0, 2]).unwrap();
    let mut parquet = ParquetWriter::new(Vec::new(), "t", TraceMeta::of_step(&step)).unwrap();
    parquet.write_step(&TraceStep::Counts(step)).unwrap();
    let parquet = parquet.finish().unwrap();
    vec![
        data("sglang-stat.pt"),
        data("sglang-per-pass.pt"),
        data("sglang-per-token.pt"),
        npy("<i4", "(3, 2, 4)", &numbers),
        parquet,
        b"# format: moeplan-trace/1\n# model: m\n# experts: 2\n# top_k: 1\n# source_ranks: 1\n# tokens_per_rank: varies\n# origin: o\n# licence: l\n# recorded_by: r\nstep,layer,source_rank,token,expert0,score0\n0,0,0,0,1,0.5\n".to_vec(),
        b"{\"layer\": 0, \"topk_ids\": [1, 2], \"topk_weights\": [0.5, 0.25]}\n{\"layer\": 0, \"topk_ids\": [1, 3], \"topk_weights\": [0.5, 0.25]}\n".to_vec(),
        b"L0,L1\n1 2,3 4\n1 0,3 1\n".to_vec(),
        b"layer_id,expert_id,count\n0,1,5\n1,2,6\n".to_vec(),
        b"step,layer,rank,e0,e1\n0,0,0,1,2\n0,0,1,3,4\n".to_vec(),
        b"1,2,3,4\n5,6,7,8\n".to_vec(),
    ]
}

#[test]
fn every_cut_of_every_layout_is_survived() {
    for seed in seeds() {
        survive(&seed);
        (0..seed.len())
            .step_by(1 + seed.len() / 300)
            .for_each(|cut| survive(&seed[..cut]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn changed_bytes_are_survived(
        which in 0_usize..11,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = seeds().swap_remove(which);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        survive(&bytes);
    }

    #[test]
    fn any_bytes_behind_any_start_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        which in 0_usize..12,
    ) {
        let starts: [&[u8]; 12] = [
            b"", b"#", b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"\x93NUMPY\x01\x00",
            b"PK\x03\x04", b"\x80\x02", b"{", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd",
            b"layer,topk_ids\n",
        ];
        survive(&[starts[which], &bytes].concat());
    }
}
