//! How long does a step take, and why?

use super::draw::{self, Pane, Series, column_of, plot, share_of, spark, stage_bar, stage_name};
use crate::dash::state::State;
use crate::output::numbers::{bytes, count, percent, three, time, times};
use crate::run_file::RunRecord;

/// Columns before a strip.
const LABEL: usize = 17;
/// Columns after it.
const NOW: usize = 12;
/// Charts to choose from.
const CHARTS: [&str; 4] = [
    "step time over steps",
    "capacity factor over steps",
    "tokens dropped over steps",
    "throughput over steps, tokens/s",
];

pub(super) fn draw(state: &State, pane: &mut Pane<'_>) {
    let (width, height) = (pane.width(), pane.height());
    let strips = 9;
    let top = height - strips - 2;
    let now = 34.min(width * 2 / 5);
    let wide = height >= 38 && state.run.layers.is_some();
    let chart = if wide { top / 2 } else { top };
    chart_of(
        state,
        &mut pane.part(0, 0, width - now, chart),
        state.metric_of(crate::dash::state::View::Overview, CHARTS.len()),
    );
    if wide {
        chart_of(state, &mut pane.part(0, chart, width - now, top - chart), 1);
    }
    figures(state, &mut pane.part(width - now, 0, now, top));
    stages(state, &mut pane.part(0, top, width, 2));
    strips_of(state, &mut pane.part(0, top + 2, width, strips));
}

fn chart_of(state: &State, pane: &mut Pane<'_>, which: usize) {
    if which == 1 {
        return capacity(state, pane);
    }
    let mut inside = pane.framed(CHARTS[which]);
    let header = state.run.header.as_ref();
    let tokens = header.map_or(0, |header| header.tokens_per_gpu * header.gpus) as f64;
    let value = |run: &RunRecord| match which {
        2 => run.dropped * 100.0,
        3 => tokens / (run.time.max(1) as f64 * 1e-9),
        _ => run.time as f64,
    };
    let series: Vec<Series> = (0..state.run.strategies())
        .map(|strategy| Series {
            name: state.run.name(strategy).to_owned(),
            hue: strategy,
            strong: strategy == state.strategy,
            values: state
                .run
                .steps
                .iter()
                .map(|step| value(&step.runs[strategy]))
                .collect(),
        })
        .collect();
    let format = |value: f64| match which {
        2 => format!("{value:.1} %"),
        3 => rate(value),
        _ => time(value.max(0.0) as u64),
    };
    plot(&mut inside, &series, &format, Some(state.cursor));
}

/// Figure 1 of the paper: how much capacity each MoE layer of the trace needs.
fn capacity(state: &State, pane: &mut Pane<'_>) {
    let format = |value: f64| three(value);
    match &state.run.layers {
        Some(layers) => {
            let mut inside = pane.framed("capacity factor needed, by MoE layer of the trace");
            let series: Vec<Series> = layers
                .layers
                .iter()
                .enumerate()
                .map(|(place, layer)| Series {
                    name: format!("layer {layer}"),
                    hue: place,
                    strong: false,
                    values: layers
                        .steps
                        .iter()
                        .map(|step| step.needed_factor[place])
                        .collect(),
                })
                .collect();
            let at = state.cursor * layers.steps.len() / state.run.steps.len().max(1);
            plot(&mut inside, &series, &format, Some(at));
        }
        None => {
            let mut inside = pane.framed("capacity factor");
            let of = |name: &str, hue, values: Vec<f64>| Series {
                name: name.into(),
                hue,
                strong: hue == state.strategy,
                values,
            };
            let steps = || state.run.steps.iter();
            let needed = steps().map(|step| step.routing.needed_factor).collect();
            let force = steps()
                .map(|step| step.runs[state.strategy].capacity_factor)
                .collect();
            let series = [
                of("needed", state.strategy + 1, needed),
                of("in force", state.strategy, force),
            ];
            plot(&mut inside, &series, &format, Some(state.cursor));
        }
    }
}

/// A rate with its thousands, millions or billions.
pub(super) fn rate(value: f64) -> String {
    let units = [(1e9, " G"), (1e6, " M"), (1e3, " k")];
    match units.iter().find(|(scale, _)| value >= *scale) {
        Some((scale, unit)) => format!("{}{unit}", three(value / scale)),
        None => three(value),
    }
}

fn figures(state: &State, pane: &mut Pane<'_>) {
    let theme = state.theme;
    let mut inside = pane.framed("this step");
    let (Some(step), Some(run), Some(header)) =
        (state.step(), state.run_now(), state.run.header.as_ref())
    else {
        return;
    };
    let end = inside.width().saturating_sub(1);
    let mut y = 0;
    let mut row = |label: &str, value: String, style: ratatui::style::Style| {
        inside.put(1, y, label, theme.dim());
        inside.put_right(end, y, &value, style);
        y += 1;
    };
    let plain = ratatui::style::Style::new();
    row("step time", time(run.time), theme.strong());
    if state.run.strategies() > 1 {
        let first = step.runs[0].time as f64 / run.time.max(1) as f64;
        row(
            &format!("against {}", state.run.name(0)),
            times(first),
            theme.strong(),
        );
    }
    let tokens = (header.tokens_per_gpu * header.gpus) as f64;
    let per_second = tokens / (run.time.max(1) as f64 * 1e-9);
    row("throughput", format!("{} tok/s", rate(per_second)), plain);
    let exposed = run.exposed as f64 / run.time.max(1) as f64;
    row("exposed comm.", percent(exposed), plain);
    row(
        "tokens dropped",
        percent(run.dropped),
        if run.dropped > 0.1 {
            theme.bad()
        } else {
            plain
        },
    );
    let factor = format!(
        "{} of {}",
        three(run.capacity_factor),
        three(step.routing.needed_factor)
    );
    row("capacity factor", factor, plain);
    let share = run.memory_bytes as f64 / header.memory_bytes.max(1) as f64;
    match run.fits {
        true => row(
            "memory",
            format!("{}, {}", bytes(run.memory_bytes), percent(share)),
            plain,
        ),
        false => row("memory: DOES NOT FIT", bytes(run.memory_bytes), theme.bad()),
    }
    if let Some(oracle) = run.oracle {
        let lost = run.time.saturating_sub(oracle);
        row(
            "lost to best plan",
            if lost == 0 {
                "nothing".into()
            } else {
                time(lost)
            },
            plain,
        );
    }
    if let Some(predicted) = run.predicted {
        let error = predicted as f64 / run.time.max(1) as f64 - 1.0;
        row(
            "simulated",
            format!("{} ({:+.1} %)", time(predicted), error * 100.0),
            plain,
        );
    }
    row(
        "busiest expert",
        format!("{} of mean", times(step.routing.max_over_mean)),
        plain,
    );
    if run.trial {
        row("the policy is trying this plan", String::new(), theme.bad());
    }
    row("", String::new(), plain);
    let totals = &state.run.totals[state.strategy];
    let known = state.run.steps.len() as u128;
    row(
        &format!("mean of {} steps", count(known as u64)),
        time((totals.time / known.max(1)) as u64),
        plain,
    );
    if totals.with_oracle > 0 {
        let mean = (totals.regret / u128::from(totals.with_oracle)) as u64;
        row("  lost to best plan", time(mean), plain);
    }
    row("", String::new(), plain);
    let next = y;
    let mut lines = next;
    for text in [&header.cluster, &header.layer, &header.routing] {
        let height = inside.height();
        if lines >= height {
            break;
        }
        let width = inside.width().saturating_sub(2);
        lines += inside
            .part(1, lines, width, height - lines)
            .words(0, text, theme.dim())
            + 1;
    }
}

/// Where the time of the step goes; overlapping stages both count.
fn stages(state: &State, pane: &mut Pane<'_>) {
    let Some(run) = state.run_now() else { return };
    let busy: u64 = run.stages.iter().sum();
    let width = pane.width().saturating_sub(LABEL + NOW + 1);
    pane.put(1, 0, "time by stage", state.theme.dim());
    stage_bar(pane, LABEL, 0, width, &run.stages, busy);
    let overlap = busy.saturating_sub(run.time);
    pane.put_right(pane.width() - 1, 0, &time(busy), state.theme.strong());
    let mut x = LABEL;
    for (stage, spent) in run
        .stages
        .iter()
        .enumerate()
        .filter(|(_, spent)| **spent > 0)
    {
        let share = percent(*spent as f64 / busy.max(1) as f64);
        let text = format!("{} {share}  ", stage_name(stage));
        if x + text.len() > LABEL + width {
            break;
        }
        x = pane.put(x, 1, &text, state.theme.dim());
    }
    if overlap > 0 && x + 24 < pane.width() {
        pane.put_right(
            pane.width() - 1,
            1,
            &format!("{} overlapped", time(overlap)),
            state.theme.dim(),
        );
    }
}

/// A row of values over the steps.
struct Strip {
    label: &'static str,
    now: String,
    values: Vec<f64>,
    hue: usize,
}

fn strips_of(state: &State, pane: &mut Pane<'_>) {
    let theme = state.theme;
    let mut inside = pane.framed("over the run");
    let width = inside.width().saturating_sub(LABEL + NOW);
    let steps = &state.run.steps;
    let (Some(step), Some(now)) = (state.step(), state.run_now()) else {
        return;
    };
    inside.put(1, 0, "plan", theme.dim());
    for column in 0..width {
        let shown = share_of(steps.len(), width, column);
        let plan = &steps[shown.start].runs[state.strategy].plan;
        let place = state
            .run
            .plans
            .iter()
            .position(|known| known == plan)
            .unwrap_or(0);
        inside.glyph(
            LABEL + column,
            0,
            state.run.letter(plan),
            theme.block(place),
        );
    }
    inside.put_right(
        LABEL + width + NOW - 1,
        0,
        &format!("{}", state.run.letter(&now.plan)),
        theme.strong(),
    );
    let lost = |run: &RunRecord| {
        run.oracle
            .map_or(0.0, |best| run.time.saturating_sub(best) as f64)
    };
    let strips = [
        Strip {
            label: "lost to best",
            now: time(lost(now) as u64),
            values: steps
                .iter()
                .map(|step| lost(&step.runs[state.strategy]))
                .collect(),
            hue: 4,
        },
        Strip {
            label: "dropped",
            now: percent(now.dropped),
            values: steps
                .iter()
                .map(|step| step.runs[state.strategy].dropped)
                .collect(),
            hue: 0,
        },
        Strip {
            label: "capacity needed",
            now: three(step.routing.needed_factor),
            values: steps
                .iter()
                .map(|step| step.routing.needed_factor)
                .collect(),
            hue: 1,
        },
        Strip {
            label: "busiest expert",
            now: times(step.routing.max_over_mean),
            values: steps
                .iter()
                .map(|step| step.routing.max_over_mean)
                .collect(),
            hue: 3,
        },
    ];
    for (row, strip) in strips.into_iter().enumerate() {
        let most = strip.values.iter().copied().fold(0.0, f64::max);
        inside.put(1, row + 1, strip.label, theme.dim());
        for column in 0..width {
            let shown = &strip.values[share_of(steps.len(), width, column)];
            let most_here = shown.iter().copied().fold(0.0, f64::max);
            let share = if most > 0.0 { most_here / most } else { 0.0 };
            inside.glyph(LABEL + column, row + 1, spark(share), theme.hue(strip.hue));
        }
        inside.put_right(LABEL + width + NOW - 1, row + 1, &strip.now, theme.strong());
    }
    let cursor = column_of(steps.len(), width, state.cursor);
    inside.glyph(LABEL + cursor, 5, '▲', theme.strong());
    inside.put(1, 5, "step", theme.dim());
    inside.put_right(
        LABEL + width + NOW - 1,
        5,
        &format!("{}", step.index + 1),
        theme.strong(),
    );
    let mut x = LABEL;
    // The plans of this strategy, in their letters.
    let mut seen: Vec<&str> = Vec::new();
    for step in steps {
        let plan = &*step.runs[state.strategy].plan;
        if seen.last() != Some(&plan) && !seen.contains(&plan) {
            seen.push(plan);
            if seen.len() > 12 {
                break;
            }
        }
    }
    for plan in seen {
        let text = format!("{} {plan}   ", state.run.letter(plan));
        if x + text.chars().count() > inside.width() {
            inside.put(x, 6, "...", theme.dim());
            break;
        }
        x = inside.put(x, 6, &text, theme.dim());
    }
    inside.put(1, 6, "plans", theme.dim());
}

/// A click on the strips goes to that step.
pub(crate) fn click(state: &mut State, column: u16, row: u16) {
    let (columns, rows) = state.size;
    let strips = rows.saturating_sub(10)..rows.saturating_sub(1);
    let width = usize::from(columns).saturating_sub(2 + LABEL + NOW);
    let at = usize::from(column).checked_sub(1 + LABEL);
    if let Some(at) = at.filter(|at| *at < width && strips.contains(&row)) {
        let steps = state.run.steps.len();
        if steps > 0 {
            state.cursor = draw::share_of(steps, width, at).start.min(steps - 1);
            state.at_end = state.cursor + 1 == steps;
        }
    }
}
