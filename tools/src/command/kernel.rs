//! `kernel`: one kernel alone on one GPU.

use crate::error::{Error, Exit, Place};
use crate::output::numbers::{count, three, time};
use crate::output::table::{Grid, paragraph};
use crate::output::{Answer, MARKS};
use crate::play::refused;
use crate::resolve::{Given, cluster};
use crate::settings::KernelSettings;
use clap::{Args, ValueEnum};
use moeplan_sim::compile::{Capacity, Routing};
use moeplan_sim::cost::CostModel;
use moeplan_sim::cost::analytic::Analytic;
use moeplan_sim::cost::gemm::GemmShape;
use moeplan_sim::cost::gemm_table::GemmTable;
use moeplan_sim::cost::moe_table::{PowerLawFfn, read_moe_ffn_rows};
use moeplan_sim::cost::provenance::{Estimate, Provenance};
use moeplan_sim::hardware::Hardware;
use moeplan_sim::ir::{OpKind, Pass, PerRank, Work};
use moeplan_sim::spec::{DType, Encode, Experts, Gate, LayerSpec};
use moeplan_sim::units::Time;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// Largest extent of a product.
const MAX_EXTENT: u64 = 1 << 24;

/// Which kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    /// One matrix product.
    Gemm,
    /// Many of one shape, each with a weight of its own unless --weights says otherwise.
    BatchedGemm,
    /// The expert feed-forward of one layer in one fused kernel, 16-bit.
    MoeFfn,
    /// Tokens to the dispatch buffer.
    Encode,
    /// Expert outputs back to tokens.
    Decode,
}

impl Kernel {
    const fn name(self) -> &'static str {
        match self {
            Kernel::Gemm => "gemm",
            Kernel::BatchedGemm => "batched-gemm",
            Kernel::MoeFfn => "moe-ffn",
            Kernel::Encode => "encode",
            Kernel::Decode => "decode",
        }
    }

    /// The settings it has, and whether each must be given.
    const fn settings(self) -> &'static [(&'static str, bool)] {
        match self {
            Kernel::Gemm => &[
                ("m", true),
                ("n", true),
                ("k", true),
                ("dtype", false),
                ("table", false),
            ],
            Kernel::BatchedGemm => &[
                ("batch", true),
                ("weights", false),
                ("m", true),
                ("n", true),
                ("k", true),
                ("dtype", false),
                ("table", false),
            ],
            Kernel::MoeFfn => &[
                ("num-tokens", true),
                ("hidden-size", true),
                ("inter-size", true),
                ("top-k", true),
                ("num-experts", true),
                ("tp", false),
                ("ep", false),
                ("alpha", false),
                ("table", false),
            ],
            Kernel::Encode | Kernel::Decode => &[
                ("tokens-per-step", true),
                ("model-dim", true),
                ("num-experts", true),
                ("top-k", false),
                ("capacity-factor", false),
                ("encode", false),
                ("dtype", false),
            ],
        }
    }
}

/// `kernel`.
#[derive(Debug, Clone, Args)]
pub struct KernelArgs {
    /// Which
    #[arg(value_name = "KERNEL")]
    pub kernel: Kernel,
    /// Whose GPUs: nd-a100-v4-80gb, nd-a100-v4-40gb, dgx-a100, or a TOML file
    #[arg(long, value_name = "PRESET|FILE")]
    pub cluster: Option<String>,
    /// Shape.
    #[command(flatten, next_help_heading = "Shape")]
    pub settings: KernelSettings,
}

/// What a kernel takes and does.
struct Priced {
    estimate: Estimate,
    flops: f64,
    /// Bytes through memory of what only copies.
    copied: u64,
    launches: usize,
}

impl Priced {
    fn of(estimate: Estimate, work: &[Work]) -> Priced {
        Priced {
            estimate,
            flops: work.iter().map(Work::flops).sum(),
            copied: work.iter().map(Work::bytes).sum(),
            launches: work.len(),
        }
    }
}

/// Prices the kernel.
///
/// # Errors
/// Settings that cannot be used, or that this kernel does not have.
pub fn run(kernel: Kernel, given: &Given) -> Result<(Answer, Exit), Error> {
    let (cluster_name, hardware) = cluster(given)?;
    let settings = resolve(kernel, given)?;
    let Priced {
        estimate,
        flops,
        copied: memory,
        launches,
    } = match kernel {
        Kernel::Gemm | Kernel::BatchedGemm => gemm(&settings, given, &hardware)?,
        Kernel::MoeFfn => moe_ffn(&settings, given, &hardware)?,
        Kernel::Encode | Kernel::Decode => copy(kernel, &settings, given, &hardware)?,
    };
    let seconds = estimate.time.as_secs_f64().max(1e-12);
    let tflops = flops / seconds / 1e12;
    let mut run = Map::new();
    run.insert("kernel".into(), json!(kernel.name()));
    run.insert("time_ns".into(), json!(estimate.time.as_ns()));
    run.insert("tflops".into(), json!(tflops));
    run.insert("flops".into(), json!(flops));
    run.insert("copied_bytes".into(), json!(memory));
    run.insert("launches".into(), json!(launches));
    run.insert("provenance".into(), json!(estimate.provenance.to_string()));
    let shape = shape(kernel, &settings)?;
    let said: Vec<String> = shape
        .iter()
        .map(|(key, value)| match value {
            Value::String(text) => format!("{key} {text}"),
            Value::Number(number) => {
                format!(
                    "{key} {}",
                    number.as_u64().map_or(number.to_string(), count)
                )
            }
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => key.clone(),
        })
        .collect();
    run.insert("shape".into(), Value::Object(shape));
    let mut text = paragraph(
        &format!(
            "{} on one {}: {}",
            kernel.name(),
            hardware.gpu.name,
            said.join(", ")
        ),
        2,
    );
    text.push('\n');
    let mut grid = Grid::new(["", "value"]);
    grid.row(["time".to_owned(), time(estimate.time.as_ns())]);
    if flops > 0.0 {
        grid.row(["rate".to_owned(), format!("{} TFLOPS", three(tflops))]);
    }
    if memory > 0 {
        grid.row(["copied".to_owned(), crate::output::numbers::bytes(memory)]);
    }
    grid.row(["kernels".to_owned(), launches.to_string()]);
    let trust = estimate.provenance.to_string();
    grid.row(["trust".to_owned(), trust.clone()]);
    text += &grid.render(40);
    if let Some((_, _, meaning)) = MARKS.iter().find(|(name, _, _)| *name == trust) {
        text += &format!("{trust}: {meaning}\n");
    }
    let answer = Answer {
        command: "kernel",
        settings: json!({
            "cluster": {"preset": cluster_name},
            "kernel": settings,
            "hardware": hardware,
        }),
        seed: given.seed(),
        body: [("runs".to_owned(), json!([run]))].into_iter().collect(),
        rows: "runs",
        text,
    };
    Ok((answer, Exit::Done))
}

fn place(given: &Given, field: &str) -> Place {
    given.place(&["kernel"], None, field)
}

/// Flags over the study file, for the settings this kernel has. A flag that it does not have is an
/// error: nothing is ignored in silence.
fn resolve(kernel: Kernel, given: &Given) -> Result<KernelSettings, Error> {
    let as_table = |settings: &KernelSettings| match super::compare::to_json(settings)? {
        Value::Object(table) => Ok(table),
        other => Err(Error::Unexpected(format!("settings of a kernel: {other}"))),
    };
    let flags = as_table(&given.flags.kernel)?;
    let mut merged = Map::new();
    for (field, value) in as_table(&given.file.kernel)?
        .into_iter()
        .chain(flags.clone())
    {
        match kernel.settings().iter().find(|(known, _)| *known == field) {
            Some(_) => {
                merged.insert(field, value);
            }
            // The study file may hold settings of several kernels.
            None if !flags.contains_key(&field) => {}
            None => {
                let known: Vec<&str> = kernel.settings().iter().map(|(field, _)| *field).collect();
                let message = format!(
                    "expected a setting of {} ({})",
                    kernel.name(),
                    known.join(", ")
                );
                return Err(Error::input(Place::flag(format!("--{field}")), message));
            }
        }
    }
    for (field, needed) in kernel.settings() {
        if *needed && !merged.contains_key(*field) {
            let message = format!("expected a number: {} needs it", kernel.name());
            return Err(Error::input(Place::flag(format!("--{field}")), message));
        }
    }
    let mut settings: KernelSettings = serde_json::from_value(Value::Object(merged))
        .map_err(|error| Error::Unexpected(error.to_string()))?;
    match kernel {
        Kernel::Gemm | Kernel::BatchedGemm => {
            settings.dtype.get_or_insert(DType::Bf16);
        }
        Kernel::MoeFfn => {
            settings.tp.get_or_insert(1);
            settings.ep.get_or_insert(1);
            settings.alpha.get_or_insert(1.01);
        }
        Kernel::Encode | Kernel::Decode => {
            settings.dtype.get_or_insert(DType::Tf32);
            settings.top_k.get_or_insert(2);
            settings.capacity_factor.get_or_insert(1.0);
            settings.encode.get_or_insert(Encode::Sparse);
        }
    }
    Ok(settings)
}

fn shape(kernel: Kernel, settings: &KernelSettings) -> Result<Map<String, Value>, Error> {
    let all = super::compare::to_json(settings)?;
    let wanted = kernel.settings().iter();
    Ok(wanted
        .filter_map(|(field, _)| Some(((*field).to_owned(), all.get(field)?.clone())))
        .collect())
}

fn gemm(settings: &KernelSettings, given: &Given, hardware: &Hardware) -> Result<Priced, Error> {
    let extent = |field: &str, value: Option<u64>| match value {
        Some(value) if (1..=MAX_EXTENT).contains(&value) => Ok(value),
        value => {
            let found = value.unwrap_or(0);
            let message = format!("expected 1 to {MAX_EXTENT}, found {found}");
            Err(Error::input(place(given, field), message))
        }
    };
    let [m, n, k] = [
        extent("m", settings.m)?,
        extent("n", settings.n)?,
        extent("k", settings.k)?,
    ];
    let batch = extent("batch", settings.batch.or(Some(1)))?;
    let dtype = settings.dtype.unwrap_or(DType::Bf16);
    let shape = match settings.batch {
        None => GemmShape::dense(m, n, k, dtype),
        Some(_) => {
            let weights = extent("weights", settings.weights.or(Some(batch)))?;
            GemmShape::batched(batch, m, n, k, dtype).sharing(weights.min(batch))
        }
    };
    // Alone a kernel runs at the rates that were measured, not at what a framework reaches.
    let params = &hardware.gpu.gemm;
    let estimate = match &settings.table {
        None => params.estimate(&shape),
        Some(path) => {
            let (name, file) = open(path)?;
            let table = GemmTable::read(file, params)
                .map_err(|error| Error::input(Place::file(name), error.to_string()))?;
            table.estimate(&shape)
        }
    };
    Ok(Priced::of(estimate, &[Work::Gemm(shape)]))
}

fn moe_ffn(settings: &KernelSettings, given: &Given, hardware: &Hardware) -> Result<Priced, Error> {
    let alpha = settings.alpha.unwrap_or(1.01);
    if !((0.0..=3.0).contains(&alpha) && (alpha - 1.0).abs() > 1e-9) {
        let message = format!("expected 0 to 3, not exactly 1, found {alpha}");
        return Err(Error::input(place(given, "alpha"), message));
    }
    let ffn = PowerLawFfn {
        num_tokens: settings.num_tokens.unwrap_or(0),
        hidden_size: settings.hidden_size.unwrap_or(0),
        inter_size: settings.inter_size.unwrap_or(0),
        top_k: u64::from(settings.top_k.unwrap_or(0)),
        num_experts: settings.num_experts.unwrap_or(0),
        tensor_parallel: settings.tp.unwrap_or(1),
        expert_parallel: settings.ep.unwrap_or(1),
        exponent: alpha,
    };
    let extents = [
        ("num-tokens", ffn.num_tokens, MAX_EXTENT),
        ("hidden-size", ffn.hidden_size, MAX_EXTENT),
        ("inter-size", ffn.inter_size, MAX_EXTENT),
        ("num-experts", ffn.num_experts, 1 << 20),
        ("top-k", ffn.top_k, ffn.num_experts),
        ("tp", ffn.tensor_parallel, ffn.inter_size),
        ("ep", ffn.expert_parallel, ffn.num_experts),
    ];
    for (field, value, most) in extents {
        if !(1..=most).contains(&value) {
            let message = format!("expected 1 to {most}, found {value}");
            return Err(Error::input(place(given, field), message));
        }
    }
    let shape = ffn.busiest().ok_or_else(|| {
        let (field, expected) = if ffn.num_experts.is_multiple_of(ffn.expert_parallel) {
            ("tp", "a divisor of --inter-size")
        } else {
            ("ep", "a divisor of --num-experts")
        };
        Error::input(place(given, field), format!("expected {expected}"))
    })?;
    let modelled = hardware.gpu.moe_ffn.estimate(&shape);
    let estimate = match &settings.table {
        None => modelled,
        Some(path) => {
            let (name, file) = open(path)?;
            let rows = read_moe_ffn_rows(file)
                .map_err(|error| Error::input(Place::file(name), error.to_string()))?;
            let same: Vec<Time> = rows
                .into_iter()
                .filter(|(measured, _)| *measured == shape)
                .map(|(_, time)| time)
                .collect();
            match same.len() as f64 {
                // Nothing of this shape was measured.
                0.0 => modelled,
                count => {
                    let total: Time = same.into_iter().sum();
                    Estimate::new(total.scale(1.0 / count), Provenance::Measured)
                }
            }
        }
    };
    Ok(Priced {
        estimate,
        flops: shape.flops(),
        copied: 0,
        launches: 1,
    })
}

fn open(path: &Path) -> Result<(String, BufReader<File>), Error> {
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => Ok((name, BufReader::new(file))),
        Err(source) => Err(Error::Read { path: name, source }),
    }
}

fn copy(
    kernel: Kernel,
    settings: &KernelSettings,
    given: &Given,
    hardware: &Hardware,
) -> Result<Priced, Error> {
    let experts = settings.num_experts.unwrap_or(0);
    let spec = LayerSpec {
        tokens_per_step: settings.tokens_per_step.unwrap_or(0),
        model_dim: settings.model_dim.unwrap_or(0),
        hidden_dim: 1,
        experts: Experts::Total(experts),
        top_k: settings.top_k.unwrap_or(2),
        capacity_factor: settings.capacity_factor.unwrap_or(1.0),
        dtype: settings.dtype.unwrap_or(DType::Tf32),
        gate: Gate::Linear,
    };
    // What a GPU encodes does not depend on how many hold the experts.
    let layer = spec.resolve(1).map_err(|error| match refused(&error) {
        Error::Input { message, .. } => Error::input(place(given, error.field), message),
        other => other,
    })?;
    let capacity = Capacity::of(&layer, spec.capacity_factor, &Routing::Balanced);
    let slots = capacity.padded(1, 1).saturating_mul(experts);
    let tokens = layer.tokens();
    let encode = settings.encode.unwrap_or(Encode::Sparse);
    let copies = PerRank::Same(layer.routed_copies().min(slots));
    let slots = PerRank::Same(slots);
    let model_dim = spec.model_dim;
    let op = match kernel {
        Kernel::Decode => OpKind::Decode {
            encode,
            top_k: spec.top_k,
            tokens,
            copies,
            slots,
            model_dim,
        },
        Kernel::Encode | Kernel::Gemm | Kernel::BatchedGemm | Kernel::MoeFfn => OpKind::Encode {
            encode,
            tokens,
            copies,
            slots,
            model_dim,
        },
    };
    crate::resolve::gpus_only(hardware)?;
    let model = Analytic::new(hardware)?;
    let work = op.work(Pass::Forward, 0, spec.dtype);
    let none = Estimate::new(Time::ZERO, Provenance::Measured);
    let estimate = work
        .iter()
        .map(|work| model.kernel(work))
        .fold(none, Estimate::then);
    Ok(Priced::of(estimate, &work))
}
