//! Runs side by side: one column a strategy.

use super::MARKS;
use super::numbers::{bytes, count, percent, three, time, times};
use super::table::{Grid, paragraph};
use crate::resolve::Resolved;
use crate::summary::RunSummary;
use moeplan_sim::economy::Cost;
use moeplan_sim::spec::{Experts, Gate, Phase};

/// What a table is about, in two or three lines.
pub fn heading(resolved: &Resolved) -> String {
    let layer = resolved.layer(0);
    let mut text = paragraph(
        &format!(
            "{} GPUs, {} a node: {}",
            count(layer.world_size),
            resolved.gpus_per_node,
            resolved.hardware.description
        ),
        2,
    );
    text += &paragraph(&layer_line(resolved), 2);
    text += &paragraph(&format!("routing: {}", resolved.routing.describe()), 2);
    text
}

/// The layer in a line.
pub fn layer_line(resolved: &Resolved) -> String {
    let layer = resolved.layer(0);
    let spec = &layer.spec;
    let top_k = match &resolved.study.layer.top_k {
        Some(top_k) if top_k.by_step().len() > 1 => format!("{top_k} in turn"),
        Some(_) | None => spec.top_k.to_string(),
    };
    let experts = match spec.experts {
        Experts::PerGpu(per_gpu) => format!(
            "{per_gpu} experts a GPU ({} in all)",
            count(layer.num_experts)
        ),
        Experts::Total(total) => format!("{} experts", count(total)),
    };
    let name = resolved.study.layer.preset.as_deref().unwrap_or("layer");
    format!(
        "layer {name}: {} tokens a GPU and step, D {}, H {}, {experts}, top-{}, capacity \
             factor {}, {}{}, {}",
        count(spec.tokens_per_step),
        count(spec.model_dim),
        count(spec.hidden_dim),
        top_k,
        capacity_words(spec.capacity_factor),
        spec.dtype,
        match spec.gate {
            Gate::Linear => String::new(),
            Gate::Cosine { projection_dim } =>
                format!(", cosine gate of {projection_dim} channels"),
        },
        match resolved.phase {
            Phase::Forward => "forward only",
            Phase::Training => "forward and backward",
        },
    )
}

fn capacity_words(x: f64) -> String {
    if x > 0.0 {
        three(x)
    } else if x == 0.0 {
        "as needed".into()
    } else {
        format!("as needed up to {}", three(-x))
    }
}

fn mark(run: &RunSummary, figure: &str) -> &'static str {
    let trust = run.provenance.iter().find(|(key, _)| *key == figure);
    trust
        .and_then(|(_, trust)| MARKS.iter().find(|(name, _, _)| name == trust))
        .map_or(" ", |(_, mark, _)| mark)
}

/// The table of `runs`, speed-up over the first, with what the marks mean below; with money and energy where
/// a currency says that they were asked for.
pub fn table(runs: &[RunSummary], speedup: &[f64], currency: Option<&str>) -> String {
    let titles = runs.iter().map(|run| run.strategy.clone());
    let mut grid = Grid::new(std::iter::once(String::new()).chain(titles));
    let mut row = |label: &str, cell: &dyn Fn(usize, &RunSummary) -> String| {
        let cells = runs.iter().enumerate().map(|(index, run)| cell(index, run));
        grid.row(std::iter::once(label.to_owned()).chain(cells));
    };
    let many = runs.iter().any(|run| run.steps > 1);
    let marked =
        |run: &RunSummary, figure: &str, text: String| format!("{text} {}", mark(run, figure));
    let plain = |text: String| format!("{text}  ");
    let step_time = if many { "step time, mean" } else { "step time" };
    row(step_time, &|_, run| {
        marked(run, "step_time", time(run.step_time_ns))
    });
    if many {
        row("  95th percentile", &|_, run| {
            marked(run, "step_time", time(run.step_time_p95_ns))
        });
        row("  all steps", &|_, run| {
            marked(run, "step_time", time(run.total_time_ns))
        });
    }
    if runs.len() > 1 {
        row("speed-up", &|index, _| plain(times(speedup[index])));
    }
    let stages: Vec<&'static str> = runs
        .first()
        .map(|run| run.stages_ns.iter().map(|(stage, _)| *stage).collect())
        .unwrap_or_default();
    for (index, stage) in stages.into_iter().enumerate() {
        let used = runs.iter().any(|run| run.stages_ns[index].1 > 0);
        if used || stage != "weights" {
            let label = format!("  {stage}");
            row(&label, &|_, run| {
                marked(run, stage, time(run.stages_ns[index].1))
            });
        }
    }
    row("exposed communication", &|_, run| {
        marked(
            run,
            "exposed_communication",
            time(run.exposed_communication_ns),
        )
    });
    row("  of the step", &|_, run| {
        plain(percent(
            run.exposed_communication_ns as f64 / run.step_time_ns.max(1) as f64,
        ))
    });
    row("tokens dropped", &|_, run| {
        marked(run, "dropped_fraction", percent(run.dropped_fraction))
    });
    row("capacity factor", &|_, run| {
        plain(three(run.capacity_factor))
    });
    let varies = |run: &RunSummary| three(run.capacity_factor) != three(run.capacity_factor_max);
    if runs.iter().any(varies) {
        row("  largest", &|_, run| plain(three(run.capacity_factor_max)));
    }
    row("memory a GPU", &|_, run| {
        marked(run, "memory", bytes(run.memory_bytes_per_gpu))
    });
    let available = runs.first().map_or(0, |run| run.memory_available_bytes);
    row(&format!("  of {}", bytes(available)), &|_, run| {
        plain(match run.memory_bytes_per_gpu.checked_sub(available) {
            Some(over) if over > 0 => format!("NO: {} over", bytes(over)),
            Some(_) | None => "fits".into(),
        })
    });
    if let Some(currency) = currency {
        let figure = |run: &RunSummary, of: &dyn Fn(&Cost) -> f64| {
            plain(run.cost.as_ref().map_or("-".into(), |cost| three(of(cost))))
        };
        row(&format!("{currency} an hour"), &|_, run| {
            figure(run, &|cost| cost.cost_per_hour)
        });
        row(&format!("{currency} for 10^9 tokens"), &|_, run| {
            figure(run, &|cost| cost.cost_per_billion_tokens)
        });
        row("joules a token", &|_, run| {
            figure(run, &|cost| cost.joules_per_token)
        });
    }
    row("chosen: r", &|_, run| {
        plain(run.chosen.adaptive_r.to_string())
    });
    row("  pipelining degree", &|_, run| {
        let (forward, backward) = (run.chosen.pipeline_degree, run.chosen.backward_degree);
        plain(if forward == backward {
            forward.to_string()
        } else {
            format!("{forward}/{backward}")
        })
    });
    row("  all-to-all", &|_, run| {
        plain(run.chosen.all_to_all.unwrap_or("none").into())
    });
    if many && runs.iter().any(|run| run.plans.len() > 1) {
        row("  in steps", &|_, run| {
            let most = run.plans.first().map_or(0, |plan| plan.steps);
            plain(format!("{most} of {}", run.steps))
        });
    }
    if runs
        .iter()
        .any(|run| run.regret_ns.is_some_and(|regret| regret > 0))
    {
        row("lost to best plan", &|_, run| {
            plain(run.regret_ns.map_or_else(|| "-".into(), time))
        });
    }
    if runs.iter().any(|run| run.trials > 0) {
        row("  trial steps", &|_, run| plain(run.trials.to_string()));
    }
    let mut text = grid.render(16);
    text += &legend(runs);
    text += &other_plans(runs);
    text
}

fn legend(runs: &[RunSummary]) -> String {
    let mut text = String::new();
    for (name, mark, meaning) in MARKS {
        let used = runs
            .iter()
            .flat_map(|run| &run.provenance)
            .any(|(_, trust)| trust == name);
        if used {
            text += &format!("{mark} {name}: {meaning}\n");
        }
    }
    text
}

/// Plans beside the most frequent one.
fn other_plans(runs: &[RunSummary]) -> String {
    let mut text = String::new();
    for run in runs.iter().filter(|run| run.plans.len() > 1) {
        let plans: Vec<String> = run
            .plans
            .iter()
            .map(|plan| format!("{} in {}", plan.plan, plan.steps))
            .collect();
        text += &paragraph(&format!("{}: {}", run.strategy, plans.join(", ")), 2);
    }
    text
}

/// Every step of every run.
pub fn per_step(runs: &[RunSummary]) -> String {
    let mut text = String::new();
    for run in runs {
        let Some(rows) = &run.per_step else { continue };
        let mut grid = Grid::new([
            format!("{}: step", run.strategy),
            "time".into(),
            "best plan".into(),
            "capacity factor".into(),
            "dropped".into(),
            "memory".into(),
            "plan".into(),
        ]);
        for step in rows {
            let trial = if step.trial { " (trial)" } else { "" };
            grid.row([
                step.step.to_string(),
                time(step.step_time_ns),
                step.best_time_ns.map_or_else(|| "-".into(), time),
                three(step.capacity_factor),
                percent(step.dropped_fraction),
                bytes(step.memory_bytes_per_gpu),
                format!("{}{trial}", step.plan),
            ]);
        }
        text.push('\n');
        text += &grid.render(24);
    }
    text
}

/// Two or three sentences on what the table says.
pub fn reading(runs: &[RunSummary]) -> String {
    let mut sentences: Vec<String> = Vec::new();
    if let [first, .., last] = runs {
        let fastest = runs
            .iter()
            .filter(|run| run.fits)
            .min_by_key(|run| run.step_time_ns)
            .unwrap_or(last);
        if fastest.step_time_ns < first.step_time_ns {
            let ratio = first.step_time_ns as f64 / fastest.step_time_ns.max(1) as f64;
            sentences.push(format!(
                "{} is the fastest that fits: {} of {}'s {} a step ({}); {}.",
                fastest.strategy,
                time(fastest.step_time_ns),
                first.strategy,
                time(first.step_time_ns),
                times(ratio),
                biggest_saving(first, fastest),
            ));
        }
    }
    for run in runs.iter().filter(|run| !run.fits) {
        let over = run
            .memory_bytes_per_gpu
            .saturating_sub(run.memory_available_bytes);
        sentences.push(format!(
            "{} runs out of memory: its time is what it would take with {} more a GPU.",
            run.strategy,
            bytes(over)
        ));
    }
    if let Some(worst) = runs
        .iter()
        .filter(|run| run.dropped_fraction > 0.01)
        .max_by(|a, b| a.dropped_fraction.total_cmp(&b.dropped_fraction))
    {
        sentences.push(format!(
            "A capacity factor of {} drops {} of the token copies, which costs model quality.",
            three(worst.capacity_factor),
            percent(worst.dropped_fraction),
        ));
        sentences.extend(without_drops(runs));
    }
    if sentences.is_empty() {
        return String::new();
    }
    paragraph(&sentences.join(" "), 0)
}

/// What dropping nothing takes, and how the slowest and the fastest way to it compare.
fn without_drops(runs: &[RunSummary]) -> Option<String> {
    let whole = || runs.iter().filter(|run| run.dropped_fraction == 0.0);
    let fastest = whole().min_by_key(|run| (!run.fits, run.step_time_ns))?;
    let slowest = whole().max_by_key(|run| run.step_time_ns)?;
    let takes = format!(
        "Dropping none takes {} a step with {}",
        time(fastest.step_time_ns),
        fastest.strategy
    );
    Some(if slowest.step_time_ns > fastest.step_time_ns {
        let ratio = slowest.step_time_ns as f64 / fastest.step_time_ns as f64;
        format!(
            "{takes}, {} faster than with {} ({}).",
            times(ratio),
            slowest.strategy,
            time(slowest.step_time_ns)
        )
    } else {
        format!("{takes}.")
    })
}

fn biggest_saving(from: &RunSummary, to: &RunSummary) -> String {
    let saved = |index: usize| {
        from.stages_ns[index]
            .1
            .saturating_sub(to.stages_ns[index].1)
    };
    let most = (0..from.stages_ns.len()).max_by_key(|&index| saved(index));
    match most {
        Some(index) if saved(index) > 0 => format!(
            "most is saved in {} ({} to {})",
            from.stages_ns[index].0,
            time(from.stages_ns[index].1),
            time(to.stages_ns[index].1)
        ),
        Some(_) | None => "the stages take as long but overlap".into(),
    }
}
