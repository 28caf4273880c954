//! `model`: a whole model, as one program.

use super::compare::to_json;
use crate::error::{Error, Exit};
use crate::output::numbers::{bytes, count, percent, three, time};
use crate::output::table::{Grid, paragraph};
use crate::output::{Answer, MARKS, saving};
use crate::resolve::{
    self, Given, MAX_GPUS, Planned, cluster, gpus_only, gpus_per_node, strategies,
};
use crate::routing::{Kept, RoutingSource};
use crate::session::Session;
use crate::settings::ModelSettings;
use moeplan_sim::cost::model_of;
use moeplan_sim::hardware::Hardware;
use moeplan_sim::model::{
    ModelRouting, ModelRun, ModelSpec, ModelStep, MoeGroups, Unit, Variant, published, steps,
};
use moeplan_sim::spec::{Phase, SpecError, Strategy};
use moeplan_sim::units::Time;
use serde_json::{Map, Value, json};

/// GPUs where nothing is said: those of Table 12.
const DEFAULT_GPUS: u64 = 32;

/// What came of the steps of one variant.
struct Ran {
    /// Their mean.
    mean: ModelStep,
    /// Time of the slowest but a twentieth.
    p95: Time,
    /// How many they are.
    steps: usize,
}

/// Runs the model under every strategy.
///
/// # Errors
/// Settings that cannot be used.
pub fn run(mut given: Given, session: &mut Session<'_>) -> Result<(Answer, Exit), Error> {
    let settings = given.flags.model.over(&given.file.model);
    let model = resolve::model::model(&given, &settings)?;
    let (cluster_name, hardware) = cluster(&given)?;
    gpus_only(&hardware)?;
    let set = given.flags.cluster.gpus.or(given.file.cluster.gpus);
    let gpus = set.unwrap_or(DEFAULT_GPUS);
    if !(1..=MAX_GPUS).contains(&gpus) {
        let message = format!("expected 1 to {MAX_GPUS}, found {gpus}");
        return Err(Error::input(
            given.place(&["cluster"], None, "gpus"),
            message,
        ));
    }
    let per_node = gpus_per_node(&given, &hardware, gpus)?;
    let phase = given.flags.phase.or(given.file.phase);
    let phase = phase.unwrap_or(Phase::Training);
    let variants = variants(&mut given)?;
    let prices = model_of(&hardware, gpus)?;
    let run = ModelRun {
        model: &model,
        hardware: &hardware,
        prices: &*prices,
        gpus,
        gpus_per_node: per_node,
        batch: settings.batch.unwrap_or(model.batch),
        phase,
        saving: settings.saving(),
        tensor_parallel: settings.tensor_parallel.unwrap_or(1),
    };
    let refused = |error: SpecError| {
        let message = format!("expected {}, found {}", error.expected, error.found);
        let place = given.place(&["model", "cluster"], None, error.field);
        Error::input(place, message)
    };
    let dense_alone = variants == [Variant::Dense];
    let (source, routing) = match dense_alone {
        true => (None, ModelRouting::balanced(&model)),
        false => routing(&given, &run, &refused)?,
    };
    let ran = session.on_threads(|| {
        let ran = variants.iter().map(|variant| {
            let steps = steps(&run, variant, &routing)?;
            Ran::new(&steps).ok_or_else(|| SpecError::new("steps", "at least one", 0))
        });
        ran.collect::<Result<Vec<_>, _>>()
    })?;
    let ran = ran.map_err(refused)?;
    let rows: Vec<(&Variant, &Ran)> = variants.iter().zip(&ran).collect();
    let mut body = Map::new();
    body.insert("model".into(), about(&model));
    let described = source.as_ref().map(RoutingSource::describe);
    body.insert("routing".into(), json!(described));
    let runs = rows.iter().map(|(variant, ran)| row(&run, variant, ran));
    body.insert("runs".into(), runs.collect());
    let shown = ModelSettings {
        preset: Some(model.name.clone()),
        file: settings.file.clone(),
        batch: Some(run.batch),
        num_experts: model.moe_layers().next().map(|moe| moe.experts),
        top_k: model.moe_layers().next().map(|moe| moe.top_k),
        capacity_factor: model.moe_layers().next().map(|moe| moe.capacity_factor),
        sequence_length: match model.unit {
            Unit::Images => None,
            Unit::Tokens(tokens) => Some(tokens),
        },
        shard_states: settings.shard_states,
        shard_gradients: settings.shard_gradients,
        recompute: settings.recompute,
        micro_batches: Some(run.saving.micro_batches),
        tensor_parallel: Some(run.tensor_parallel),
    };
    let answer = Answer {
        command: "model",
        settings: json!({
            "model": to_json(&shown)?,
            "cluster": { "preset": cluster_name, "gpus": gpus, "gpus-per-node": per_node },
            "routing": to_json(&source.as_ref().map(|source| &source.settings))?,
            "phase": phase.name(),
            "strategy": rows.iter().map(|(variant, _)| variant.name()).collect::<Vec<_>>(),
            "hardware": to_json(&hardware)?,
        }),
        seed: given.seed(),
        body,
        rows: "runs",
        text: text(&run, &rows, described.as_deref()),
    };
    let fits = ran.iter().any(|ran| ran.mean.fits);
    Ok((
        answer,
        if fits {
            Exit::Done
        } else {
            Exit::NoFeasiblePlan
        },
    ))
}

impl Ran {
    fn new(steps: &[ModelStep]) -> Option<Ran> {
        Some(Ran {
            mean: ModelStep::mean(steps)?,
            p95: Time::p95(steps.iter().map(|step| step.time)),
            steps: steps.len(),
        })
    }
}

/// Where the tokens of the model's MoE layers go, if it has any.
fn routing(
    given: &Given,
    run: &ModelRun<'_>,
    refused: &dyn Fn(SpecError) -> Error,
) -> Result<(Option<RoutingSource>, ModelRouting), Error> {
    let settings = resolve::routing(given);
    let groups = MoeGroups::new(run.model, 1);
    let layers = run.layers(&groups).map_err(refused)?;
    let Some(first) = layers.first() else {
        return Ok((None, ModelRouting::balanced(run.model)));
    };
    let place = |field: &str| given.place(&["routing"], None, field);
    let source = RoutingSource::of_model(&settings, first, given.seed(), &Kept::default(), &place)?;
    let groups = MoeGroups::new(run.model, source.layers());
    let layers = run.layers(&groups).map_err(refused)?;
    let steps = groups.iter().zip(&layers);
    let steps = steps.map(|(group, layer)| source.of_layer(group.recorded, layer)?.steps());
    let steps = steps.collect::<Result<_, Error>>()?;
    Ok((Some(source), ModelRouting { groups, steps }))
}

/// Strategies in order; `dense` is one of a model only.
fn variants(given: &mut Given) -> Result<Vec<Variant>, Error> {
    let named = std::mem::take(&mut given.strategies);
    let plain = |strategy: Strategy| Planned {
        strategy,
        cover_routing: false,
    };
    if named.is_empty() {
        let defaults = [plain(Strategy::fairseq()), plain(Strategy::tutel())];
        let planned = strategies(given, &defaults)?;
        let moe = planned
            .into_iter()
            .map(|planned| Variant::Moe(planned.strategy));
        return Ok(std::iter::once(Variant::Dense).chain(moe).collect());
    }
    let mut variants = Vec::new();
    for name in named {
        if name == "dense" {
            variants.push(Variant::Dense);
            continue;
        }
        given.strategies = vec![name];
        let planned = strategies(given, &[])?;
        variants.extend(
            planned
                .into_iter()
                .map(|planned| Variant::Moe(planned.strategy)),
        );
    }
    Ok(variants)
}

fn about(model: &ModelSpec) -> Value {
    let published = published(&model.name).map(|published| {
        let accuracy = published
            .accuracy
            .iter()
            .map(|(what, dense, moe)| json!({ "what": what, "dense": dense, "moe": moe }));
        json!({
            "parameters": published.parameters,
            "active_parameters": published.active_parameters,
            "source": published.source,
            "accuracy": accuracy.collect::<Value>(),
        })
    });
    json!({
        "name": model.name,
        "source": model.source,
        "unit": model.unit.name(),
        "parameters": model.parameters(),
        "active_parameters": model.active_parameters(),
        "multiply_adds_per_item": model.macs(),
        "moe_layers": model.moe_layers().count(),
        "published": published,
    })
}

fn row(run: &ModelRun<'_>, variant: &Variant, ran: &Ran) -> Value {
    let step = &ran.mean;
    let mut stages = Map::new();
    let mut provenance = Map::new();
    for stage in &step.stages {
        stages.insert(stage.stage.name().into(), json!(stage.busy.as_ns()));
        provenance.insert(
            stage.stage.name().into(),
            json!(stage.provenance.to_string()),
        );
    }
    let memory = step.memory;
    let rate = format!("{}_per_second", run.model.unit.name());
    json!({
        "strategy": variant.name(),
        "gpus": run.gpus,
        "batch_per_gpu": run.batch,
        "tensor_parallel": run.tensor_parallel,
        "steps": ran.steps,
        "step_time_ns": step.time.as_ns(),
        "step_time_p95_ns": ran.p95.as_ns(),
        format!("{rate}_per_gpu"): step.rate_per_gpu,
        rate: step.rate_per_gpu * run.gpus as f64,
        "stages_ns": stages,
        "exposed_communication_ns": step.exposed_communication.as_ns(),
        "scaling_loss_ns": step.scaling_loss.as_ns(),
        "memory_bytes_per_gpu": memory.total(),
        "memory": {
            "parameters_bytes": memory.parameters,
            "gradients_bytes": memory.gradients,
            "optimizer_bytes": memory.optimizer,
            "activations_bytes": memory.activations,
            "reserved_bytes": memory.reserved,
        },
        "fits": step.fits,
        "capacity_factor": step.drops.capacity_factor,
        "dropped_fraction": step.drops.fraction,
        "flops_per_gpu": step.flops_per_gpu,
        "mfu": step.mfu,
        "plans": step.plans.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "provenance": provenance,
    })
}

fn text(run: &ModelRun<'_>, rows: &[(&Variant, &Ran)], routing: Option<&str>) -> String {
    let (model, hardware) = (run.model, run.hardware);
    let mut text = heading(run, hardware);
    if let Some(routing) = routing {
        text += &paragraph(&format!("routing: {routing}"), 2);
    }
    text.push('\n');
    let header = std::iter::once(String::new());
    let mut grid = Grid::new(header.chain(rows.iter().map(|(v, _)| v.name().to_owned())));
    let mut line = |title: &str, cell: &dyn Fn(&Ran) -> String| {
        let cells = rows.iter().map(|(_, ran)| cell(ran));
        grid.row(std::iter::once(title.to_owned()).chain(cells));
    };
    let unit = model.unit.name();
    line("step", &|ran| time(ran.mean.time.as_ns()));
    if rows.iter().any(|(_, ran)| ran.steps > 1) {
        line("  95th percentile", &|ran| time(ran.p95.as_ns()));
    }
    line(&format!("{unit}/s a GPU"), &|ran| {
        three(ran.mean.rate_per_gpu)
    });
    line(&format!("{unit}/s in all"), &|ran| {
        count((ran.mean.rate_per_gpu * run.gpus as f64).round() as u64)
    });
    let mut stages = Vec::new();
    for (_, ran) in rows {
        for stage in &ran.mean.stages {
            if !stages.contains(&stage.stage) {
                stages.push(stage.stage);
            }
        }
    }
    stages.sort();
    for stage in stages {
        let title = format!("  {}", stage.name().replace('_', "-"));
        line(&title, &|ran| {
            let found = ran.mean.stages.iter().find(|found| found.stage == stage);
            found.map_or("-".into(), |found| {
                let name = found.provenance.to_string();
                let mark = MARKS.iter().find(|(known, ..)| *known == name);
                let mark = mark.map_or("", |(_, mark, _)| mark);
                format!("{} {mark}", time(found.busy.as_ns()))
            })
        });
    }
    line("exposed communication", &|ran| {
        time(ran.mean.exposed_communication.as_ns())
    });
    line("lost to scale (fitted)", &|ran| {
        time(ran.mean.scaling_loss.as_ns())
    });
    line("memory a GPU", &|ran| bytes(ran.mean.memory.total()));
    line("  parameters", &|ran| bytes(ran.mean.memory.parameters));
    line("  gradients", &|ran| bytes(ran.mean.memory.gradients));
    line("  optimizer states", &|ran| {
        bytes(ran.mean.memory.optimizer)
    });
    line("  activations", &|ran| bytes(ran.mean.memory.activations));
    line("  software", &|ran| bytes(ran.mean.memory.reserved));
    line("fits", &|ran| {
        if ran.mean.fits { "yes" } else { "no" }.into()
    });
    line("tokens dropped", &|ran| percent(ran.mean.drops.fraction));
    line("MFU", &|ran| percent(ran.mean.mfu));
    text += &grid.render(16);
    text.push('\n');
    for (variant, ran) in rows {
        if !ran.mean.plans.is_empty() {
            let mut plans: Vec<String> = ran.mean.plans.iter().map(ToString::to_string).collect();
            plans.dedup();
            text += &paragraph(
                &format!("{}: MoE layers run {}", variant.name(), plans.join("; ")),
                2,
            );
        }
    }
    let used: Vec<String> = MARKS
        .iter()
        .filter(|(name, ..)| {
            rows.iter()
                .flat_map(|(_, ran)| &ran.mean.stages)
                .any(|stage| stage.provenance.to_string() == *name)
        })
        .map(|(_, mark, meaning)| format!("{mark} {meaning}"))
        .collect();
    text += &paragraph(&format!("prices: {}", used.join("; ")), 2);
    text += &paragraph(
        "stages that overlap both count; MFU is of the fitted tensor-core peak",
        2,
    );
    text += &facts(model);
    text
}

fn heading(run: &ModelRun<'_>, hardware: &Hardware) -> String {
    let model = run.model;
    let (what, of) = match model.unit {
        Unit::Images => ("images".to_owned(), "an image"),
        Unit::Tokens(tokens) => (
            format!("sequences of {} tokens", count(tokens)),
            "a sequence",
        ),
    };
    let saving = saving(&run.saving, run.tensor_parallel);
    paragraph(
        &format!(
            "{}, {}, {} {what} a GPU, on {} GPUs ({}, {} a node){saving}: {} parameters, {} active, {} G \
             multiply-adds {of}",
            model.name,
            run.phase,
            run.batch,
            count(run.gpus),
            hardware.name,
            run.gpus_per_node,
            large(model.parameters() as f64),
            large(model.active_parameters() as f64),
            three(model.macs() / 1e9),
        ),
        2,
    )
}

/// What was published about the model and no simulation tells.
fn facts(model: &ModelSpec) -> String {
    let Some(published) = published(&model.name) else {
        return String::new();
    };
    let mut text = paragraph(
        &format!(
            "published ({}): {} parameters, {} active",
            published.source,
            large(published.parameters),
            large(published.active_parameters)
        ),
        2,
    );
    if !published.accuracy.is_empty() {
        text.push_str("\npublished accuracy, not simulated: dense, MoE\n");
        for (what, dense, moe) in published.accuracy {
            text += &format!("  {what}: {dense}, {moe}\n");
        }
    }
    text
}

fn large(value: f64) -> String {
    match value {
        1e9.. => format!("{} B", three(value / 1e9)),
        _ => format!("{} M", three(value / 1e6)),
    }
}
