//! `model`: a whole model, as one program.

use super::compare::to_json;
use crate::error::{Error, Exit};
use crate::output::numbers::{bytes, count, percent, three, time};
use crate::output::table::{Grid, paragraph};
use crate::output::{Answer, MARKS};
use crate::resolve::{
    self, Given, MAX_GPUS, Planned, cluster, gpus_only, gpus_per_node, strategies,
};
use crate::session::Session;
use crate::settings::ModelSettings;
use moeplan_sim::cost::model_of;
use moeplan_sim::hardware::Hardware;
use moeplan_sim::model::{ModelRun, ModelSpec, ModelStep, Unit, Variant, published, step};
use moeplan_sim::spec::{Phase, Strategy};
use serde_json::{Map, Value, json};

/// GPUs where nothing is said: those of Table 12.
const DEFAULT_GPUS: u64 = 32;

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
        shard_states: settings.shard_states,
    };
    let steps = session.on_threads(|| {
        variants
            .iter()
            .map(|variant| step(&run, variant))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let steps = steps.map_err(|error| {
        let message = format!("expected {}, found {}", error.expected, error.found);
        Error::input(
            given.place(&["model", "cluster"], None, error.field),
            message,
        )
    })?;
    let rows: Vec<(&Variant, &ModelStep)> = variants.iter().zip(&steps).collect();
    let mut body = Map::new();
    body.insert("model".into(), about(&model));
    let runs = rows.iter().map(|(variant, step)| row(&run, variant, step));
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
    };
    let answer = Answer {
        command: "model",
        settings: json!({
            "model": to_json(&shown)?,
            "cluster": { "preset": cluster_name, "gpus": gpus, "gpus-per-node": per_node },
            "phase": phase.name(),
            "strategy": rows.iter().map(|(variant, _)| variant.name()).collect::<Vec<_>>(),
            "hardware": to_json(&hardware)?,
        }),
        seed: given.seed(),
        body,
        rows: "runs",
        text: text(&run, &rows),
    };
    let fits = steps.iter().any(|step| step.fits);
    Ok((
        answer,
        if fits {
            Exit::Done
        } else {
            Exit::NoFeasiblePlan
        },
    ))
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

fn row(run: &ModelRun<'_>, variant: &Variant, step: &ModelStep) -> Value {
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
        "step_time_ns": step.time.as_ns(),
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
        "flops_per_gpu": step.flops_per_gpu,
        "mfu": step.mfu,
        "plans": step.plans.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "provenance": provenance,
    })
}

fn text(run: &ModelRun<'_>, rows: &[(&Variant, &ModelStep)]) -> String {
    let (model, hardware) = (run.model, run.hardware);
    let mut text = heading(run, hardware);
    text.push('\n');
    let header = std::iter::once(String::new());
    let mut grid = Grid::new(header.chain(rows.iter().map(|(v, _)| v.name().to_owned())));
    let mut line = |title: &str, cell: &dyn Fn(&ModelStep) -> String| {
        let cells = rows.iter().map(|(_, step)| cell(step));
        grid.row(std::iter::once(title.to_owned()).chain(cells));
    };
    let unit = model.unit.name();
    line("step", &|step| time(step.time.as_ns()));
    line(&format!("{unit}/s a GPU"), &|step| three(step.rate_per_gpu));
    line(&format!("{unit}/s in all"), &|step| {
        count((step.rate_per_gpu * run.gpus as f64).round() as u64)
    });
    let mut stages = Vec::new();
    for (_, step) in rows {
        for stage in &step.stages {
            if !stages.contains(&stage.stage) {
                stages.push(stage.stage);
            }
        }
    }
    stages.sort();
    for stage in stages {
        let title = format!("  {}", stage.name().replace('_', "-"));
        line(&title, &|step| {
            let found = step.stages.iter().find(|found| found.stage == stage);
            found.map_or("-".into(), |found| {
                let name = found.provenance.to_string();
                let mark = MARKS.iter().find(|(known, ..)| *known == name);
                let mark = mark.map_or("", |(_, mark, _)| mark);
                format!("{} {mark}", time(found.busy.as_ns()))
            })
        });
    }
    line("exposed communication", &|step| {
        time(step.exposed_communication.as_ns())
    });
    line("lost to scale (fitted)", &|step| {
        time(step.scaling_loss.as_ns())
    });
    line("memory a GPU", &|step| bytes(step.memory.total()));
    line("  parameters", &|step| bytes(step.memory.parameters));
    line("  gradients", &|step| bytes(step.memory.gradients));
    line("  optimizer states", &|step| bytes(step.memory.optimizer));
    line("  activations", &|step| bytes(step.memory.activations));
    line("  software", &|step| bytes(step.memory.reserved));
    line("fits", &|step| if step.fits { "yes" } else { "no" }.into());
    line("MFU", &|step| percent(step.mfu));
    text += &grid.render(16);
    text.push('\n');
    for (variant, step) in rows {
        if !step.plans.is_empty() {
            let plans: Vec<String> = step.plans.iter().map(ToString::to_string).collect();
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
                .flat_map(|(_, step)| &step.stages)
                .any(|stage| stage.provenance.to_string() == *name)
        })
        .map(|(_, mark, meaning)| format!("{mark} {meaning}"))
        .collect();
    text += &paragraph(&format!("prices: {}", used.join("; ")), 2);
    text += &paragraph(
        "stages that overlap both count; MFU is of the fitted tensor-core peak; routing is balanced",
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
    let sharded = if run.shard_states {
        ", states sharded"
    } else {
        ""
    };
    paragraph(
        &format!(
            "{}, {}, {} {what} a GPU, on {} GPUs ({}, {} a node){sharded}: {} parameters, {} active, {} G \
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
