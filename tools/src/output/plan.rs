//! `plan` for people.

use super::numbers::{bytes, count, percent, three, time, times};
use super::saving;
use super::table::{Grid, paragraph};
use crate::command::plan::{Findings, PlanRow};
use crate::resolve::plan::Asked;
use moeplan_sim::model::Unit;
use moeplan_sim::planner::{Goal, Violation};
use moeplan_sim::spec::Phase;
use std::collections::BTreeMap;

/// Rows of the front that are shown; JSON and CSV have all.
const SHOWN: usize = 16;

/// Everything found, as text.
pub fn text(asked: &Asked, found: &Findings) -> String {
    let mut text = paragraph(&question(asked, found), 2);
    text.push('\n');
    let Some(recommended) = &found.recommended else {
        return text + &nothing(asked, found);
    };
    let other = match found.goal {
        Goal::Cheapest => ("fastest", &found.fastest),
        Goal::Fastest => ("cheapest", &found.cheapest),
    };
    let mut columns = vec![(title(found.goal), recommended)];
    if let (name, Some(other)) = other
        && other != recommended
    {
        columns.push((name, other));
    }
    text += &side_by_side(asked, &columns);
    text += "\nnothing is better in time, GPUs, cost, memory and drops at once:\n";
    text += &front(&found.front);
    text += &limiting(found);
    if !found.neighbours.is_empty() {
        text += "\nwhy its neighbours lost:\n";
        text += &neighbours(found);
    }
    if !found.sensitivities.is_empty() {
        text += "\nwhat more would buy, the plan chosen anew:\n";
        let mut grid = Grid::new(["with", "step time", "tokens a second", "gain", "plan"]);
        for row in &found.sensitivities {
            grid.row([
                row.change.clone(),
                time(row.step_time.as_ns()),
                count(row.tokens_per_second as u64),
                times(row.gain),
                row.plan.clone(),
            ]);
        }
        text += &grid.render(15);
    }
    text + &notes(asked, found)
}

fn title(goal: Goal) -> &'static str {
    match goal {
        Goal::Cheapest => "recommended: cheapest",
        Goal::Fastest => "recommended: fastest",
    }
}

fn question(asked: &Asked, found: &Findings) -> String {
    let plan = &asked.study.plan;
    let mut limits = Vec::new();
    if let Some(limit) = &plan.step_time {
        limits.push(format!(
            "a step within {}",
            time((limit.seconds * 1e9) as u64)
        ));
    }
    if let Some(limit) = plan.tokens_per_second {
        limits.push(format!("{} tokens a second", count(limit as u64)));
    }
    if let Some(limit) = &plan.budget {
        limits.push(format!("{} {limit}", asked.prices.currency()));
    }
    if let Some(limit) = plan.memory {
        limits.push(format!("{} a GPU", bytes(limit.0)));
    }
    if let Some(limit) = plan.max_dropped {
        limits.push(format!("at most {} dropped", percent(limit)));
    }
    let wanted = match found.goal {
        Goal::Cheapest => "the cheapest plan",
        Goal::Fastest => "the fastest plan",
    };
    let limits = match limits.is_empty() {
        true => "that fits in memory".to_owned(),
        false => format!("within: {}", limits.join(", ")),
    };
    let gpus: Vec<String> = plan.gpus.iter().map(u64::to_string).collect();
    let tokens = match (plan.global_batch, &asked.model) {
        (None, None) => "the layer's tokens on every GPU, so more GPUs do more work".to_owned(),
        (None, Some(model)) => format!(
            "{} {} on every GPU, so more GPUs do more work",
            count(model.batch * model.spec.unit.per_item()),
            model.spec.unit.name()
        ),
        (Some(all), _) => format!("{} tokens a step over all GPUs", count(all)),
    };
    let of = asked.model.as_ref().map_or(String::new(), |model| {
        // What is searched is said of each plan.
        let only = |tried: &[u64], one| if tried.is_empty() { one } else { 1 };
        let parts = only(&plan.try_micro_batches, model.saving.micro_batches);
        let shared = only(&plan.try_tensor_parallel, model.tensor_parallel);
        let saving = saving(&model.saving.in_parts(parts), shared);
        format!("{}, {}{saving}: ", model.spec.name, asked.phase)
    });
    format!(
        "{of}{wanted} {limits}; {} on {} GPUs; {tokens}; {} ways, {} simulated, the others cannot win by their \
         bounds",
        plan.cluster.join(", "),
        gpus.join(", "),
        count(found.candidates as u64),
        count(found.simulated as u64),
    )
}

/// What to say where no plan meets the limits.
fn nothing(asked: &Asked, found: &Findings) -> String {
    let Some(nearest) = &found.nearest else {
        return "no plan can be run\n".into();
    };
    let mut text = "no plan meets all limits; the nearest misses:\n".to_owned();
    for broken in &nearest.violations {
        text += &format!("  {}\n", violation(broken));
    }
    text += &advice(asked, nearest);
    text.push('\n');
    text + &side_by_side(asked, &[("nearest", nearest)])
}

/// What makes a model's training step need less memory and was not asked for.
fn advice(asked: &Asked, nearest: &PlanRow) -> String {
    let memory = |broken: &Violation| broken.limit == "memory";
    let Some(model) = &asked.model else {
        return String::new();
    };
    if asked.phase == Phase::Forward || !nearest.violations.iter().any(memory) {
        return String::new();
    }
    let shares = model.spec.head_groups == 1
        || model.tensor_parallel > 1
        || !asked.study.plan.try_tensor_parallel.is_empty();
    let divided = model.batch == 1
        || model.saving.micro_batches > 1
        || !asked.study.plan.try_micro_batches.is_empty();
    let flags = [
        (model.saving.shard_gradients, "--shard-gradients"),
        (model.saving.recompute, "--recompute"),
        (divided, "--try-micro-batches"),
        (shares, "--try-tensor-parallel"),
    ];
    let flags: Vec<&str> = flags
        .iter()
        .filter_map(|(is, flag)| (!is).then_some(*flag))
        .collect();
    match flags.is_empty() {
        true => String::new(),
        false => format!(
            "a training step needs less memory with {}\n",
            flags.join(", ")
        ),
    }
}

/// A limit and how far off it is.
pub fn violation(broken: &Violation) -> String {
    let unit = |value: f64| match broken.limit {
        "memory" => bytes(value as u64),
        "step-time" => time((value * 1e9) as u64),
        "max-dropped" => percent(value),
        "tokens-per-second" => count(value as u64),
        _ => three(value),
    };
    let bound = match broken.limit {
        "tokens-per-second" => "at least",
        _ => "at most",
    };
    let far = match broken.excess {
        // Nothing of what is allowed is there to be a share of.
        excess if excess > 1e9 => String::new(),
        excess if excess >= 9.0 => format!(", {} off", times(excess + 1.0)),
        excess => format!(", {:.1} % off", excess * 100.0),
    };
    format!(
        "{}: {} where {bound} {} is asked for{far}",
        broken.limit,
        unit(broken.found),
        unit(broken.allowed),
    )
}

/// `3.2 % slower`, or the better word where it is less.
pub fn more(share: f64, worse: &str, better: &str) -> String {
    match share >= 0.0 {
        true if share >= 9.0 => format!("{} {worse}", times(share + 1.0)),
        true => format!("{:.1} % {worse}", share * 100.0),
        false => format!("{:.1} % {better}", -share * 100.0),
    }
}

fn strategy(row: &PlanRow) -> String {
    let a2a = row.all_to_all.unwrap_or("no all-to-all");
    let placed = match row.balancing.as_str() {
        "static" => String::new(),
        policy => format!(" {policy}"),
    };
    let slices = [("tp", row.tensor_parallel), ("mb", row.micro_batches)];
    let slices = slices.iter().filter(|(_, by)| *by > 1);
    let slices: String = slices.map(|(name, by)| format!("{name}={by} ")).collect();
    format!(
        "{slices}r={} d={} {a2a}{placed}",
        row.adaptive_r, row.pipeline_degree
    )
}

fn side_by_side(asked: &Asked, columns: &[(&str, &PlanRow)]) -> String {
    let currency = asked.prices.currency();
    let mut grid = Grid::new(std::iter::once("").chain(columns.iter().map(|(title, _)| *title)));
    let mut line = |name: String, of: &dyn Fn(&PlanRow) -> String| {
        grid.row(std::iter::once(name).chain(columns.iter().map(|(_, row)| of(row))));
    };
    line("cluster".into(), &|row| row.cluster.clone());
    line("GPUs".into(), &|row| count(row.gpus));
    line("tokens a GPU".into(), &|row| count(row.tokens_per_gpu));
    line("strategy".into(), &strategy);
    line("  encode, layout".into(), &|row| {
        format!("{} {}", row.encode, row.layout)
    });
    line("  padding, policy".into(), &|row| {
        format!("{} {}", row.padding, row.policy)
    });
    line("  experts placed by".into(), &|row| row.balancing.clone());
    line("number type, k".into(), &|row| {
        format!("{} top-{}", row.dtype, row.top_k)
    });
    line("capacity setting, factor".into(), &|row| {
        format!("{} {}", row.capacity_setting, three(row.capacity_factor))
    });
    line("step time".into(), &|row| time(row.step_time_ns));
    line("  95th percentile".into(), &|row| {
        time(row.step_time_p95_ns)
    });
    line("  matrix products".into(), &|row| {
        time(row.matrix_products_ns)
    });
    line("  memory-bound kernels".into(), &|row| {
        time(row.memory_bound_ns)
    });
    line("  exposed communication".into(), &|row| {
        time(row.exposed_communication_ns)
    });
    line("  nothing runs".into(), &|row| time(row.waiting_ns));
    line("tokens a second".into(), &|row| {
        count(row.tokens_per_second as u64)
    });
    line("memory a GPU".into(), &|row| {
        bytes(row.memory_bytes_per_gpu)
    });
    line("tokens dropped".into(), &|row| {
        percent(row.dropped_fraction)
    });
    line(format!("{currency} an hour"), &|row| {
        three(row.cost_per_hour)
    });
    line(format!("{currency} for 10^9 tokens"), &|row| {
        three(row.cost_per_billion_tokens)
    });
    line("joules a token".into(), &|row| three(row.joules_per_token));
    grid.render(24)
}

fn front(rows: &[PlanRow]) -> String {
    let mut grid = Grid::new([
        "GPUs",
        "cluster",
        "strategy",
        "kernels",
        "step time",
        "tokens a second",
        "per 10^9",
        "memory",
        "dropped",
    ]);
    // The fastest of every size first, then what else is on the front.
    let mut best: BTreeMap<(u64, &str), &PlanRow> = BTreeMap::new();
    for row in rows {
        let kept = best.entry((row.gpus, row.cluster.as_str())).or_insert(row);
        if row.tokens_per_second > kept.tokens_per_second {
            *kept = row;
        }
    }
    let mut shown: Vec<&PlanRow> = best.into_values().collect();
    let rest = rows.iter().filter(|row| !shown.contains(row));
    let rest: Vec<&PlanRow> = rest.take(SHOWN.saturating_sub(shown.len())).collect();
    shown.extend(rest);
    shown.sort_by(|a, b| {
        (a.gpus.cmp(&b.gpus)).then(b.tokens_per_second.total_cmp(&a.tokens_per_second))
    });
    for row in &shown {
        grid.row([
            count(row.gpus),
            row.cluster.clone(),
            strategy(row),
            format!("{} {}", row.encode, row.layout),
            time(row.step_time_ns),
            count(row.tokens_per_second as u64),
            three(row.cost_per_billion_tokens),
            bytes(row.memory_bytes_per_gpu),
            percent(row.dropped_fraction),
        ]);
    }
    let mut text = grid.render(10);
    if shown.len() < rows.len() {
        text += &format!(
            "{} of {} on the front; --format csv has all\n",
            shown.len(),
            rows.len()
        );
    }
    text
}

fn limiting(found: &Findings) -> String {
    let share = |row: &crate::command::plan::LimitingRow| {
        format!(
            "{} {} ({})",
            row.limit,
            time(row.time_ns),
            percent(row.share)
        )
    };
    let shares: Vec<String> = found.limiting.iter().map(share).collect();
    let mut text = String::new();
    if !shares.is_empty() {
        text += "\n";
        text += &paragraph(&format!("its step is limited by: {}", shares.join(", ")), 2);
    }
    if found.straggling_ns > 0 {
        text += &format!(
            "a GPU waits {} a step for slower ones\n",
            time(found.straggling_ns)
        );
    }
    text
}

fn neighbours(found: &Findings) -> String {
    let mut grid = Grid::new([
        "differs in",
        "step time",
        "tokens a second",
        "per 10^9",
        "why",
    ]);
    for row in &found.neighbours {
        let Some(plan) = &row.plan else {
            grid.row([row.differs.as_str(), "", "", "", "cannot be run"]);
            continue;
        };
        grid.row([
            row.differs.clone(),
            time(plan.step_time_ns),
            count(plan.tokens_per_second as u64),
            three(plan.cost_per_billion_tokens),
            row.why.clone(),
        ]);
    }
    grid.render(15)
}

fn notes(asked: &Asked, found: &Findings) -> String {
    let mut text = "\n".to_owned();
    let mut named = Vec::new();
    for cluster in &asked.study.plan.cluster {
        if let Ok(price) = asked.prices.of(cluster) {
            named.push(format!(
                "{cluster} {} {} a GPU and hour, {} ({}, {})",
                price.per_gpu_hour,
                asked.prices.currency(),
                asked.prices.kind(),
                price.source,
                price.date
            ));
        }
    }
    text += &paragraph(&format!("prices: {}", named.join("; ")), 2);
    let what = match asked.model.as_ref().map(|model| model.spec.unit) {
        None => "time, tokens and money are of this one layer; where a model has more, they add up",
        Some(Unit::Tokens(_)) => {
            "time, tokens and money are of the whole model; a static plan is that of all its MoE layers, an \
             adaptive one decides each alone (shown: the first)"
        }
        Some(Unit::Images) => {
            "time and money are of the whole model, tokens are its images; a static plan is that of all its \
             MoE layers, an adaptive one decides each alone (shown: the first)"
        }
    };
    text += &paragraph(what, 2);
    text += &paragraph(&format!("routing: {}", found.routing), 2);
    if !found.refused.is_empty() {
        let sizes: Vec<String> = found
            .refused
            .iter()
            .map(|row| row.gpus.to_string())
            .collect();
        let note = format!(
            "the layer does not divide over {} GPUs: {}",
            sizes.join(", "),
            found.refused[0].reason
        );
        text += &paragraph(&note, 2);
    }
    text
}
