//! The study as a page. Every sentence that says how something turned out is made from the figures.

use super::{Findings, Mode, Point};
use crate::output::numbers::{count, percent, three, times};
use std::fmt::Write;

/// Below this change of a ratio nothing is said to have changed.
const SAME: f64 = 0.05;

/// The page.
pub fn markdown(findings: &Findings, command: &str) -> String {
    let mut text = String::new();
    let _ = write!(
        text,
        "# How much of the adaptive gain is left under real skew\n\n\
         Written by `{command}`; do not edit. Static execution is the `fairseq` strategy, adaptive \
         the `tutel` strategy (everything `auto`); gain is static over adaptive step time. The layer \
         is the paper's (16,384 tokens a GPU, D = H = 2,048, two experts a GPU, forward and \
         backward) with the top-k of each trace. A trace is drawn anew for the cluster: what that \
         keeps and assumes is in [traces/README.md](../traces/README.md). At most {} steps a layer, \
         spread over the recording. How far times can be believed is in \
         [VALIDATION.md](VALIDATION.md); ratios more than times.\n\n",
        findings.steps
    );
    text += "## In short\n\n";
    for sentence in conclusions(findings) {
        let _ = writeln!(text, "- {sentence}");
    }
    text += "\n## The traces\n\n";
    text += &traces(findings);
    text += "\n![Needed capacity of the shipped traces](skew/needed-capacity.svg)\n";
    for (mode, file) in Mode::ALL
        .into_iter()
        .zip(["factor-one", "covering", "dropless"])
    {
        text += &section(findings, mode, file);
    }
    text += "\n## What this does not say\n\n\
             A trace of 32 experts, split evenly into thousands, says nothing on how thousands would \
             specialise; a capture of one source rank says nothing on how ranks differ, so its needed \
             capacity is a lower bound; the shipped traces are of models of about 0.2 million \
             parameters. The padded program is symmetric: skew shows there as dropped copies or as a \
             larger capacity, not as a straggler.\n";
    text
}

/// The middle value, of two the mean.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]),
    }
}

fn of(points: &[&Point], value: impl Fn(&Point) -> f64) -> Vec<f64> {
    points.iter().map(|point| value(point)).collect()
}

fn traces(findings: &Findings) -> String {
    let mut text = String::from(
        "| trace | layers | steps | recorded ranks x experts | top-k | needed f as recorded | max/mean load |\n\
         |---|---:|---:|---|---:|---|---|\n",
    );
    for family in findings.families() {
        let sources: Vec<_> = findings
            .sources
            .iter()
            .filter(|s| s.family == family)
            .collect();
        let least = sources.iter().map(|s| s.needed_capacity_factor[0]);
        let most = sources.iter().map(|s| s.needed_capacity_factor[1]);
        let loads = || sources.iter().map(|s| s.max_over_mean);
        let _ = writeln!(
            text,
            "| {family} | {} | {} | {} x {} | {} | {} to {} | {} to {} |",
            sources.len(),
            sources.iter().map(|s| s.steps).max().unwrap_or(0),
            sources[0].ranks,
            sources[0].experts,
            sources[0].top_k,
            three(least.fold(f64::INFINITY, f64::min)),
            three(most.fold(0.0, f64::max)),
            three(loads().fold(f64::INFINITY, f64::min)),
            three(loads().fold(0.0, f64::max)),
        );
    }
    text
}

fn section(findings: &Findings, mode: Mode, file: &str) -> String {
    let mut text = format!("\n## {}\n\n", capital(mode.title()));
    text += match mode {
        Mode::FactorOne => {
            "Both pad every expert to a capacity factor of 1 and drop what exceeds it.\n\n"
        }
        Mode::Covering => {
            "Both drop nothing. Static execution needs one capacity for the whole run, so that of the \
             most uneven of the simulated steps; adaptive execution takes what each step needs.\n\n"
        }
        Mode::Dropless => {
            "Both send and multiply routed tokens only (All-to-All-v, grouped GEMM); the GPU with the \
             busiest experts is waited for.\n\n"
        }
    };
    let scales = |text: &mut String, first: &str| {
        let _ = write!(text, "| {first} |");
        for gpus in &findings.gpus {
            let _ = write!(text, " {} GPUs |", count(*gpus));
        }
        let _ = write!(text, "\n|---|{}\n", "---|".repeat(findings.gpus.len()));
    };
    text += "Gain, median over layers (least to most):\n\n";
    scales(&mut text, "trace");
    let mut top_ks: Vec<u32> = findings.balanced.iter().map(|p| p.top_k).collect();
    top_ks.sort_unstable();
    top_ks.dedup();
    for top_k in top_ks {
        let _ = write!(text, "| balanced, top-{top_k} |");
        for &gpus in &findings.gpus {
            let mut even = findings.balanced.iter();
            let even = even.find(|p| (p.gpus, p.mode, p.top_k) == (gpus, mode, top_k));
            let _ = write!(
                text,
                " {} |",
                even.map_or_else(String::new, |p| times(p.gain))
            );
        }
        text.push('\n');
    }
    row_each(&mut text, findings, mode, |points| {
        spread(&of(points, |p| p.gain), times)
    });
    text += "\nPart of the balanced gain that is left, and adaptive step time over the balanced one, medians:\n\n";
    scales(&mut text, "trace");
    row_each(&mut text, findings, mode, |points| {
        let (left, slow) = (
            median(&of(points, |p| p.left)),
            median(&of(points, |p| p.slowdown)),
        );
        format!("{}, {}", percent_of(left), times(slow))
    });
    match mode {
        Mode::FactorOne => {
            text += "\nCopies dropped:\n\n";
            scales(&mut text, "trace");
            row_each(&mut text, findings, mode, |points| {
                spread(&of(points, |p| p.dropped_fraction), percent)
            });
        }
        Mode::Covering => {
            text += "\nCapacity factor, static and adaptive (mean over steps), medians; and layers whose static run \
                     does not fit in memory:\n\n";
            scales(&mut text, "trace");
            row_each(&mut text, findings, mode, |points| {
                let fixed = median(&of(points, |p| p.static_capacity_factor));
                let needed = median(&of(points, |p| p.adaptive_capacity_factor));
                let over = points.iter().filter(|p| !p.static_fits).count();
                let over = match over {
                    0 => String::new(),
                    over => format!("; {over} of {} do not fit", points.len()),
                };
                format!("{}, {}{over}", three(fixed), three(needed))
            });
        }
        Mode::Dropless => {}
    }
    let _ = write!(text, "\n![Gain by scale](skew/gain-{file}.svg)\n");
    text
}

fn row_each(
    text: &mut String,
    findings: &Findings,
    mode: Mode,
    cell: impl Fn(&[&Point]) -> String,
) {
    for family in findings.families() {
        let _ = write!(text, "| {family} |");
        for &gpus in &findings.gpus {
            let _ = write!(text, " {} |", cell(&findings.at(mode, gpus, Some(family))));
        }
        text.push('\n');
    }
}

fn spread(values: &[f64], show: impl Fn(f64) -> String) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let middle = show(median(values));
    if show(least) == show(most) {
        middle
    } else {
        format!("{middle} ({} to {})", show(least), show(most))
    }
}

fn percent_of(ratio: f64) -> String {
    format!("{:.0} %", 100.0 * ratio)
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

/// What the figures say.
fn conclusions(findings: &Findings) -> Vec<String> {
    let mut sentences: Vec<String> = Mode::ALL
        .into_iter()
        .map(|mode| outcome(findings, mode))
        .collect();
    sentences.push(dropped(findings));
    sentences.extend(fixed_capacity(findings));
    sentences.extend(price_of_skew(findings));
    sentences
}

/// How the gain of a mode changes with skew, and with scale.
fn outcome(findings: &Findings, mode: Mode) -> String {
    let points: Vec<&Point> = findings.points.iter().filter(|p| p.mode == mode).collect();
    let left = of(&points, |p| p.left);
    let middle = median(&left);
    let more = left.iter().filter(|&&left| left > 1.0 + SAME).count();
    let less = left.iter().filter(|&&left| left < 1.0 - SAME).count();
    let same = left.len() - more - less;
    // A verdict needs two thirds of the cases behind it.
    let most_are = |count: usize| 3 * count >= 2 * left.len();
    let verdict = if most_are(more) {
        "skew makes adaptive execution worth more"
    } else if most_are(less) {
        "skew takes some of the adaptive gain away"
    } else if most_are(same) {
        "skew leaves the adaptive gain as it is"
    } else {
        "skew moves the adaptive gain either way"
    };
    let by = |of: fn(f64, f64) -> bool| {
        points
            .iter()
            .copied()
            .reduce(|best, p| if of(p.left, best.left) { p } else { best })
    };
    let named = |point: Option<&Point>| {
        point.map_or_else(String::new, |p| {
            format!(
                "{} ({}, {} GPUs)",
                percent_of(p.left),
                p.family.split(',').next().unwrap_or_default(),
                count(p.gpus)
            )
        })
    };
    let (least, most) = (by(|a, b| a < b), by(|a, b| a > b));
    let at = |gpus: u64| {
        let points = findings.at(mode, gpus, None);
        format!(
            "{} ({} left) on {} GPUs",
            times(median(&of(&points, |p| p.gain))),
            percent_of(median(&of(&points, |p| p.left))),
            count(gpus)
        )
    };
    let scales: Vec<String> = findings.gpus.iter().map(|&gpus| at(gpus)).collect();
    format!(
        "**{}:** {verdict}. Against balanced routing the gain is larger in {more}, the same (within 5 %) in {same} and \
         smaller in {less} of {} cases; {} of it is there in the median, from {} to {}. Median gain: {}.",
        capital(mode.title()),
        left.len(),
        percent_of(middle),
        named(least),
        named(most),
        scales.join(", "),
    )
}

fn dropped(findings: &Findings) -> String {
    let points: Vec<&Point> = findings
        .points
        .iter()
        .filter(|p| p.mode == Mode::FactorOne)
        .collect();
    let dropped = of(&points, |p| p.dropped_fraction);
    let high = dropped.iter().filter(|&&share| share > 0.1).count();
    format!(
        "What f = 1 costs is tokens, not time: {} of the copies are dropped in the median, more than 10 % in {high} of \
         {} cases.",
        percent(median(&dropped)),
        dropped.len()
    )
}

/// What a capacity for the whole run costs against one for each step.
fn fixed_capacity(findings: &Findings) -> Option<String> {
    let several: Vec<&Point> = findings
        .points
        .iter()
        .filter(|p| p.mode == Mode::Covering && p.static_capacity_factor > 0.0)
        .collect();
    if several.is_empty() {
        return None;
    }
    let ratio = of(&several, |p| {
        p.static_capacity_factor / p.adaptive_capacity_factor
    });
    let over = several.iter().filter(|p| !p.static_fits).count();
    let most = ratio.iter().copied().fold(0.0, f64::max);
    Some(format!(
        "One capacity for all steps is {} that of the steps themselves in the median, up to {} (traces with one recorded \
         step: 1.00x); with it static execution runs out of memory in {over} of {} cases, adaptive execution in {}.",
        times(median(&ratio)),
        times(most),
        several.len(),
        several.iter().filter(|p| !p.adaptive_fits).count(),
    ))
}

/// What skew costs even adaptive execution, padded and dropless.
fn price_of_skew(findings: &Findings) -> Option<String> {
    let slow = |mode: Mode| {
        let points: Vec<&Point> = findings.points.iter().filter(|p| p.mode == mode).collect();
        median(&of(&points, |p| p.slowdown))
    };
    let faster = |mode: Mode, other: Mode| {
        let pairs = findings.points.iter().filter(|p| p.mode == mode);
        pairs
            .filter(|p| {
                let mut twins = findings.points.iter();
                let twin = twins.find(|q| {
                    q.mode == other && (q.gpus, &q.trace, q.layer) == (p.gpus, &p.trace, p.layer)
                });
                twin.is_some_and(|q| p.adaptive_ns < q.adaptive_ns)
            })
            .count()
    };
    let cases = findings
        .points
        .iter()
        .filter(|p| p.mode == Mode::Dropless)
        .count();
    (cases > 0).then(|| {
        format!(
            "Skew costs adaptive execution, too, where no token may be dropped: against balanced routing a step takes {} \
             as long when padded and {} as long when dropless (medians). Dropless is the faster of the two in {} of {cases} \
             cases.",
            times(slow(Mode::Covering)),
            times(slow(Mode::Dropless)),
            faster(Mode::Dropless, Mode::Covering),
        )
    })
}
