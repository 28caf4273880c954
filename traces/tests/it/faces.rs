//! The two faces of the format: what one holds, the other holds; both stream.

use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

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

/// A file of counts that is made while it is read: far larger than the memory it takes.
struct Endless {
    head: Vec<u8>,
    row: Vec<u8>,
    steps: u64,
    at: u64,
    /// Largest distance between what was read and where reading went on: 0 for a stream.
    largest_read: usize,
}

impl Endless {
    fn len(&self) -> u64 {
        self.head.len() as u64 + self.steps * self.row.len() as u64
    }
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.largest_read = self.largest_read.max(buffer.len());
        assert!(
            self.largest_read <= 4 << 20,
            "a read of {} bytes",
            self.largest_read
        );
        let mut done = 0;
        while done < buffer.len() && self.at < self.len() {
            let head = self.head.len() as u64;
            let (from, offset) = match self.at.checked_sub(head) {
                None => (self.head.as_slice(), self.at as usize),
                Some(at) => (self.row.as_slice(), (at % self.row.len() as u64) as usize),
            };
            let size = (buffer.len() - done).min(from.len() - offset);
            buffer[done..done + size].copy_from_slice(&from[offset..offset + size]);
            // Steps are numbered with as many digits as there is room for.
            if let Some(at) = self.at.checked_sub(head) {
                let number = format!("{:010}", at / self.row.len() as u64);
                for (index, digit) in number.bytes().enumerate() {
                    if (offset..offset + size).contains(&index) {
                        buffer[done + index - offset] = digit;
                    }
                }
            }
            done += size;
            self.at += size as u64;
        }
        Ok(done)
    }
}

impl Seek for Endless {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::End(offset) => self.len().checked_add_signed(offset).unwrap(),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset).unwrap(),
        };
        Ok(self.at)
    }
}

#[test]
fn a_trace_larger_than_memory_streams() {
    let step = RoutingStep::new(0, 0, 1, 1000, vec![1; 1000]).unwrap();
    let meta = TraceMeta::of_step(&step);
    let text = as_csv(&meta, &[TraceStep::Counts(step)]);
    let line = text.iter().rposition(|&byte| byte == b',').unwrap();
    let start = text[..line]
        .iter()
        .rposition(|&byte| byte == b'\n')
        .unwrap()
        + 1;
    let row = [b"0000000000", &text[start + 1..]].concat();
    // 400 MB; the reader holds a line, a step and its buffers.
    let file = Endless {
        head: text[..start].to_vec(),
        row,
        steps: 200_000,
        at: 0,
        largest_read: 0,
    };
    let source = open(file, "endless.csv", &ImportOptions::default()).unwrap();
    let before = resident_kib();
    let copies: u64 = source.map(|step| step.unwrap().total()).sum();
    assert_eq!(copies, 200_000 * 1000);
    if let (Some(before), Some(after)) = (before, resident_kib()) {
        assert!(
            after < before + (64 << 10),
            "{before} KiB before, {after} after"
        );
    }
}

/// Memory of this process, where the system tells.
fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
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
    refuse(gzip(&quoted), &["bomb:", "a record of at most"]);
    refuse(gzip(&as_csv_head())[..40].to_vec(), &["bomb"]);
}

fn as_csv_head() -> Vec<u8> {
    let step = RoutingStep::new(0, 0, 1, 2, vec![1, 0]).unwrap();
    as_csv(&TraceMeta::of_step(&step), &[TraceStep::Counts(step)])
}
