//! `collective`: one collective alone.

use super::byte_matrix::{self, Matrix};
use crate::error::{Error, Exit, Place};
use crate::output::numbers::{bytes, three, time, times};
use crate::output::table::{Grid, paragraph};
use crate::output::{Answer, MARKS};
use crate::resolve::{Given, MAX_GPUS, cluster, gpus_per_node};
use crate::session::Session;
use crate::settings::{ClusterSettings, CollectiveSettings};
use clap::Args;
use moeplan_sim::compile::{Payload, all_to_all};
use moeplan_sim::cost::analytic::Analytic;
use moeplan_sim::cost::nccl::{CollectiveKind, Nccl};
use moeplan_sim::cost::nccl_table::{CorrectedNccl, parse_nccl_table};
use moeplan_sim::cost::price::price;
use moeplan_sim::cost::provenance::Provenance;
use moeplan_sim::cost::{CostModel, provenance::Estimate};
use moeplan_sim::engine;
use moeplan_sim::hardware::Hardware;
use moeplan_sim::ir::{ProgramBuilder, Scope};
use moeplan_sim::spec::{AllToAll, DType};
use moeplan_sim::units::Time;
use serde_json::json;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// GPUs when nothing is said: two nodes of the paper's cluster.
const DEFAULT_GPUS: u64 = 16;

/// Most bytes of one collective.
pub(super) const MAX_BYTES: u64 = 1 << 50;

/// `collective`.
#[derive(Debug, Clone, Args)]
pub struct CollectiveArgs {
    /// all-to-all, all-gather, reduce-scatter or all-reduce
    #[arg(value_name = "COLLECTIVE")]
    pub collective: CollectiveKind,
    /// Where.
    #[command(flatten, next_help_heading = "Cluster")]
    pub cluster: ClusterSettings,
    /// What.
    #[command(flatten, next_help_heading = "Collective")]
    pub settings: CollectiveSettings,
}

/// A collective, resolved.
struct Collective {
    kind: CollectiveKind,
    algorithm: AllToAll,
    bytes: u64,
    matrix: Option<Matrix>,
    gpus: usize,
    gpus_per_node: usize,
}

/// Prices the collective.
///
/// # Errors
/// Settings that cannot be used.
pub fn run(
    kind: CollectiveKind,
    given: &Given,
    session: &mut Session<'_>,
) -> Result<(Answer, Exit), Error> {
    let (cluster_name, mut hardware) = cluster(given)?;
    crate::resolve::gpus_only(&hardware)?;
    let settings = given.flags.collective.over(&given.file.collective);
    let at = |field: &str| given.place(&["collective"], None, field);
    if let Some(library) = &settings.library {
        if !hardware.collectives.library.contains_key(library) {
            let known: Vec<&str> = hardware
                .collectives
                .library
                .keys()
                .map(String::as_str)
                .collect();
            let message = format!("expected {}, found `{library}`", known.join(", "));
            return Err(Error::input(at("library"), message));
        }
        hardware.collectives.default_library.clone_from(library);
    }
    let matrix = settings
        .matrix
        .as_deref()
        .map(byte_matrix::read)
        .transpose()?;
    let stated = given.flags.cluster.gpus.or(given.file.cluster.gpus);
    let gpus = match (&matrix, stated) {
        (Some(matrix), Some(gpus)) if gpus != matrix.gpus as u64 => {
            let message = format!(
                "expected the {} GPUs of the matrix, found {gpus}",
                matrix.gpus
            );
            return Err(Error::input(
                given.place(&["cluster"], None, "gpus"),
                message,
            ));
        }
        (Some(matrix), _) => matrix.gpus as u64,
        (None, gpus) => gpus.unwrap_or(DEFAULT_GPUS),
    };
    if !(2..=MAX_GPUS).contains(&gpus) {
        let message = format!("expected 2 to {MAX_GPUS}, found {gpus}");
        return Err(Error::input(
            given.place(&["cluster"], None, "gpus"),
            message,
        ));
    }
    let m = gpus_per_node(given, &hardware, gpus)?;
    let algorithm = match settings.algorithm {
        Some(algorithm) if kind != CollectiveKind::AllToAll => {
            let message = format!("expected with all-to-all only, found {algorithm} with {kind}");
            return Err(Error::input(at("algorithm"), message));
        }
        Some(algorithm) => algorithm,
        None => AllToAll::Linear,
    };
    if matrix.is_some() && kind != CollectiveKind::AllToAll {
        let message = format!("expected with all-to-all only, found {kind}");
        return Err(Error::input(at("matrix"), message));
    }
    let bytes = match (&matrix, settings.bytes.map(|size| size.0)) {
        (Some(_), Some(_)) if given.flags.collective.bytes.is_some() => {
            let message = "expected either --bytes or --matrix, found both";
            return Err(Error::input(at("bytes"), message));
        }
        (Some(matrix), _) => matrix.most_sent(),
        (None, Some(bytes)) if (1..=MAX_BYTES).contains(&bytes) => bytes,
        (None, Some(bytes)) => {
            let message = format!("expected 1 to {MAX_BYTES}, found {bytes}");
            return Err(Error::input(at("bytes"), message));
        }
        (None, None) => {
            let message = "expected a size such as 64MiB, found none";
            return Err(Error::input(Place::flag("--bytes"), message));
        }
    };
    let collective = Collective {
        kind,
        algorithm,
        bytes,
        matrix,
        gpus: gpus as usize,
        gpus_per_node: m as usize,
    };
    let nccl = Nccl::new(hardware.collectives.clone(), None)?;
    let table = settings
        .table
        .as_deref()
        .map(|path| correct(path, &nccl))
        .transpose()?;
    let priced = session
        .on_threads(|| price_collective(&collective, &hardware, &nccl, table.as_ref()))??;
    let bound = port_bound(&collective, &hardware);
    Ok((
        answer(
            &collective,
            &cluster_name,
            &hardware,
            &nccl,
            &priced,
            bound,
            given,
        ),
        Exit::Done,
    ))
}

/// Time of an even All-to-All of `bytes` a GPU on whole nodes, as `collective` prices it.
///
/// # Errors
/// Collective parameters that make no model.
pub fn all_to_all_time(
    algorithm: AllToAll,
    bytes: u64,
    gpus: usize,
    hardware: &Hardware,
) -> Result<Time, Error> {
    let collective = Collective {
        kind: CollectiveKind::AllToAll,
        algorithm,
        bytes,
        matrix: None,
        gpus,
        gpus_per_node: (hardware.node.gpus as usize).min(gpus),
    };
    let nccl = Nccl::new(hardware.collectives.clone(), None)?;
    let priced = price_collective(&collective, hardware, &nccl, None)?;
    Ok(priced.estimate.time)
}

struct Priced {
    estimate: Estimate,
    bottleneck: Option<String>,
}

fn price_collective(
    collective: &Collective,
    hardware: &Hardware,
    nccl: &Nccl,
    table: Option<&CorrectedNccl>,
) -> Result<Priced, Error> {
    let &Collective {
        kind,
        bytes,
        gpus,
        gpus_per_node,
        ..
    } = collective;
    let even = collective.matrix.is_none();
    let linear = collective.algorithm == AllToAll::Linear;
    if let Some(table) = table.filter(|_| even && linear) {
        let estimate = table.estimate(kind, bytes, gpus, gpus_per_node);
        if matches!(
            estimate.provenance,
            Provenance::Measured | Provenance::Interpolated
        ) {
            return Ok(Priced {
                estimate,
                bottleneck: None,
            });
        }
    }
    let one_node = gpus == gpus_per_node;
    if one_node && even {
        // On one node every algorithm is the linear one.
        let estimate = nccl.estimate(kind, bytes, gpus, gpus_per_node);
        return Ok(Priced {
            estimate,
            bottleneck: Some("every NVLink port alike".into()),
        });
    }
    let model = Analytic::new(hardware)?;
    let whole = || ProgramBuilder::new(gpus, gpus_per_node, DType::Fp32).finish();
    let estimate = match kind {
        CollectiveKind::AllToAll => return exchange(collective, &model),
        CollectiveKind::AllGather => model.gather(&whole(), Scope::World, bytes, false),
        CollectiveKind::ReduceScatter => model.gather(&whole(), Scope::World, bytes, true),
        CollectiveKind::AllReduce => nccl.estimate(kind, bytes, gpus, gpus_per_node),
    };
    Ok(Priced {
        estimate,
        bottleneck: None,
    })
}

/// An All-to-All on the network: its phases as a program of their own.
fn exchange(collective: &Collective, model: &Analytic) -> Result<Priced, Error> {
    let (world, node) = (collective.gpus, collective.gpus_per_node);
    let payload = match &collective.matrix {
        Some(matrix) => Payload::Matrix {
            rows: matrix.rows.clone(),
            row_bytes: matrix.row_bytes,
        },
        None => Payload::Uniform {
            bytes_per_peer: collective.bytes.div_ceil(world as u64),
        },
    };
    let program = all_to_all(collective.algorithm, &payload, world, node);
    let priced = price(&program, model);
    let (timeline, _) = engine::run(&program, &priced, model.concurrency());
    // As in nccl-tests: from the start of the first kernel, not from its launch.
    let started = (0..timeline.rows())
        .filter_map(|rank| timeline.rank(rank).first().map(|span| span.start))
        .min()
        .unwrap_or(Time::ZERO);
    let provenance = priced
        .iter()
        .map(|op| op.provenance)
        .fold(Provenance::Measured, Provenance::worse);
    let bottleneck = super::breakdown::biggest_exchange(&program, &timeline, model)
        .map(|biggest| biggest.bottleneck);
    Ok(Priced {
        estimate: Estimate::new(timeline.step_time() - started, provenance),
        bottleneck,
    })
}

/// The time below which no such collective can end, whatever the software: the busiest port at its
/// full rate. Hierarchical algorithms may spread a GPU's bytes over the NICs of its node, so for
/// them all NICs of a node count as one.
fn port_bound(collective: &Collective, hardware: &Hardware) -> Time {
    let &Collective {
        kind,
        bytes,
        gpus,
        gpus_per_node,
        ..
    } = collective;
    let nvlink = hardware.collectives.intra.port_gb_per_s * 1e9;
    let nic = hardware.collectives.nic.wire_gb_per_s * 1e9;
    let (size, world, node) = (bytes as f64, gpus as f64, gpus_per_node as f64);
    let nodes = world / node;
    let seconds = match (kind, &collective.matrix) {
        (CollectiveKind::AllToAll, Some(matrix)) => {
            let spread = collective.algorithm != AllToAll::Linear;
            matrix.port_seconds(gpus_per_node, nvlink, nic, spread)
        }
        (CollectiveKind::AllToAll, None) => {
            let within = size * (node - 1.0) / world / nvlink;
            within.max(size * (world - node) / world / nic)
        }
        (
            CollectiveKind::AllGather | CollectiveKind::ReduceScatter | CollectiveKind::AllReduce,
            _,
        ) => {
            let times = if kind == CollectiveKind::AllReduce {
                2.0
            } else {
                1.0
            };
            let into_node = size * (nodes - 1.0) / nodes / node / nic;
            let both = if nodes > 1.0 { nvlink + nic } else { nvlink };
            times * into_node.max(size * (world - 1.0) / world / both)
        }
    };
    Time::from_secs_f64(seconds)
}

fn correct(path: &Path, nccl: &Nccl) -> Result<CorrectedNccl, Error> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|source| Error::Read {
        path: name.clone(),
        source,
    })?;
    let rows = parse_nccl_table(BufReader::new(file))
        .map_err(|error| Error::input(Place::file(name), error.to_string()))?;
    Ok(CorrectedNccl::new(nccl.clone(), &rows))
}

fn answer(
    collective: &Collective,
    cluster_name: &str,
    hardware: &Hardware,
    nccl: &Nccl,
    priced: &Priced,
    bound: Time,
    given: &Given,
) -> Answer {
    let &Collective {
        kind,
        bytes: size,
        gpus,
        gpus_per_node,
        ..
    } = collective;
    let took = priced.estimate.time;
    let algbw = size as f64 / took.as_secs_f64().max(1e-12) / 1e9;
    let busbw = kind.busbw_gbps(size, gpus, took.max(Time::from_ps(1)));
    let algorithm = (kind == CollectiveKind::AllToAll).then(|| collective.algorithm.name());
    let bound_share = bound.as_secs_f64() / took.as_secs_f64().max(1e-12);
    let run = json!({
        "collective": kind.name(),
        "algorithm": algorithm,
        "gpus": gpus,
        "gpus_per_node": gpus_per_node,
        "bytes": size,
        "uneven": collective.matrix.is_some(),
        "library": nccl.library(),
        "time_ns": took.as_ns(),
        "algbw_gbps": algbw,
        "busbw_gbps": busbw,
        "port_bound_ns": bound.as_ns(),
        "bottleneck": priced.bottleneck,
        "provenance": priced.estimate.provenance.to_string(),
    });
    let mut text = paragraph(
        &format!(
            "{kind}{} of {} a GPU over {gpus} GPUs, {gpus_per_node} a node: {}, {}",
            algorithm
                .map(|name| format!(" ({name})"))
                .unwrap_or_default(),
            bytes(size),
            hardware.description,
            nccl.library(),
        ),
        2,
    );
    text.push('\n');
    let mut grid = Grid::new(["", "value"]);
    grid.row(["time".to_owned(), time(took.as_ns())]);
    grid.row([
        "algorithm bandwidth".to_owned(),
        format!("{} GB/s", three(algbw)),
    ]);
    grid.row(["bus bandwidth".to_owned(), format!("{} GB/s", three(busbw))]);
    grid.row(["port bound".to_owned(), time(bound.as_ns())]);
    grid.row([
        "  time over it".to_owned(),
        times(1.0 / bound_share.max(1e-12)),
    ]);
    if let Some(bottleneck) = &priced.bottleneck {
        grid.row(["limited by".to_owned(), bottleneck.clone()]);
    }
    let trust = priced.estimate.provenance.to_string();
    grid.row(["trust".to_owned(), trust.clone()]);
    text += &grid.render(40);
    if let Some((_, _, meaning)) = MARKS.iter().find(|(name, _, _)| *name == trust) {
        text += &format!("{trust}: {meaning}\n");
    }
    let settings = json!({
        "cluster": {"preset": cluster_name, "gpus": gpus, "gpus-per-node": gpus_per_node},
        "collective": given.flags.collective.over(&given.file.collective),
        "hardware": hardware,
    });
    Answer {
        command: "collective",
        settings,
        seed: given.seed(),
        body: [("runs".to_owned(), json!([run]))].into_iter().collect(),
        rows: "runs",
        text,
    }
}
