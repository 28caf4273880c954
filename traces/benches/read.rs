//! How fast traces are read: import and counts, in bytes of the file a second on one core.
//!
//! Time is that of the processor, where the system tells it: other work on the machine does not
//! count.
//!
//! Files are made up once, under `target/tmp/traces-read`; `benches/read_polars.py` reads the same
//! ones, so that ratios can be told: `cargo bench -p moeplan-traces --bench read`, then
//! `python3 traces/benches/read_polars.py`.

#![expect(missing_docs, reason = "criterion makes a public function")]

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moeplan_traces::{
    ImportOptions, ParquetWriter, RoutingSpec, Shape, TraceMeta, TraceStep, TraceWriter, open,
};

/// About 40 MB as 32-bit counts.
const SHAPE: Shape = Shape {
    ranks: 64,
    experts: 128,
    tokens_per_rank: 4096,
    top_k: 8,
};
const LAYERS: u32 = 8;
const STEPS: u64 = 160;

/// Tokens of the per-token files, 24 layers of 4 choices each: about 30 MB as CSV.
const TOKENS: usize = 100_000;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("traces-read")
}

fn steps() -> Vec<TraceStep> {
    let spec: RoutingSpec = "dirichlet:0.5".parse().expect("a specification");
    // A few are drawn; what is read is not slower for being read again.
    let drawn: Vec<_> = (0..4)
        .map(|step| spec.generate(&SHAPE, 1, step, 0).expect("a shape"))
        .collect();
    let keys = (0..STEPS).flat_map(|step| (0..LAYERS).map(move |layer| (step, layer)));
    let steps = keys.map(|(step, layer)| {
        let like = &drawn[((step * 3 + u64::from(layer)) % 4) as usize];
        let counts = like.all_counts().to_vec();
        let step = moeplan_traces::RoutingStep::new(step, layer, 8, SHAPE.experts, counts);
        TraceStep::Counts(step.expect("counts of a step"))
    });
    steps.collect()
}

/// Writes the files, unless they are there.
fn prepare() -> PathBuf {
    let folder = folder();
    if folder.join("ready").exists() {
        return folder;
    }
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = |name: &str| BufWriter::new(File::create(folder.join(name)).expect("a file"));
    let steps = steps();
    let TraceStep::Counts(first) = &steps[0] else {
        return folder;
    };
    let meta = TraceMeta::of_step(first);
    let mut csv = TraceWriter::new(file("counts.csv"), "counts.csv", meta.clone()).expect("meta");
    let mut parquet = ParquetWriter::new(file("counts.parquet"), "", meta).expect("meta");
    let mut four = file("counts-i4.npy");
    let mut eight = file("counts-i8.npy");
    four.write_all(&npy("<i4")).expect("a header");
    eight.write_all(&npy("<i8")).expect("a header");
    for step in &steps {
        csv.write_step(step).expect("a step");
        parquet.write_step(step).expect("a step");
        if let TraceStep::Counts(step) = step {
            for &count in step.all_counts() {
                four.write_all(&(count as i32).to_le_bytes())
                    .expect("a count");
                eight
                    .write_all(&i64::from(count).to_le_bytes())
                    .expect("a count");
            }
        }
    }
    csv.finish().expect("the end");
    parquet.finish().expect("the end");
    tokens(&mut file("tokens.csv"));
    File::create(folder.join("ready")).expect("a mark");
    folder
}

fn npy(descr: &str) -> Vec<u8> {
    let shape = (STEPS, LAYERS, SHAPE.ranks, SHAPE.experts);
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape:?}, }}");
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes
}

fn tokens(file: &mut impl std::io::Write) {
    let mut text = String::from("doc,token");
    for layer in 0..24 {
        let _ = write!(text, ",L{layer}");
    }
    text.push('\n');
    for token in 0..TOKENS {
        let _ = write!(text, "{},{token}", token / 500);
        for layer in 0..24 {
            let first = (token * 7 + layer * 5 + token / 11) % 32;
            let [b, c, d] = [1, 9, 22].map(|more| (first + more) % 32);
            let _ = write!(text, ",{first} {b} {c} {d}");
        }
        text.push('\n');
    }
    file.write_all(text.as_bytes()).expect("tokens");
}

/// Time that this thread was on a processor.
struct CpuTime;

impl CpuTime {
    fn now() -> Duration {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let nanoseconds = text.split(' ').next().and_then(|field| field.parse().ok());
        match nanoseconds {
            Some(nanoseconds) => Duration::from_nanos(nanoseconds),
            None => START.get_or_init(Instant::now).elapsed(),
        }
    }
}

/// Begin of the clock where the system does not tell the time of the processor.
static START: OnceLock<Instant> = OnceLock::new();

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        Self::now()
    }

    fn end(&self, start: Duration) -> Duration {
        Self::now().saturating_sub(start)
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn read(c: &mut Criterion<CpuTime>) {
    let folder = prepare();
    let mut group = c.benchmark_group("read");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    let blocks = ImportOptions {
        top_k: Some(4),
        experts: Some(32),
        assign: moeplan_traces::Assign::Blocks,
        ..ImportOptions::default()
    };
    let counts = ImportOptions {
        top_k: Some(8),
        ..ImportOptions::default()
    };
    for (name, options) in [
        ("counts-i4.npy", &counts),
        ("counts-i8.npy", &counts),
        ("counts.parquet", &counts),
        ("counts.csv", &counts),
        ("tokens.csv", &blocks),
    ] {
        let path = folder.join(name);
        let bytes = std::fs::metadata(&path).expect("a file").len();
        // Parquet is told by what it unpacks to: 4 bytes a count.
        let bytes = match name {
            "counts.parquet" => {
                STEPS * u64::from(LAYERS) * (SHAPE.ranks * SHAPE.experts * 4) as u64
            }
            _ => bytes,
        };
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(name, |b| {
            b.iter(|| {
                let file = File::open(&path).expect("a file");
                let source = open(file, name, options).expect("a trace");
                source
                    .map(|step| step.expect("a step").total())
                    .sum::<u64>()
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = read
}
criterion_main!(benches);
