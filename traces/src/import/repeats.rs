//! Drops steps that no traffic made: runs of identical ones, steps whose tokens all chose the same
//! experts, and steps without tokens.
//!
//! Warm-up, profiling and CUDA-graph capture send the same dummy tokens over and over. Left in,
//! they fake a hot spot of 10 to 15 times the mean.

use std::collections::VecDeque;

use super::{ImportOptions, ImportReport, Steps};
use crate::error::{Place, TraceError};
use crate::format::TraceStep;
use crate::routing::RoutingStep;

/// Steps in a row that are dropped when they are identical in all layers. Two or three may be
/// chance where steps are small.
pub(super) const MIN_STEPS: u64 = 4;

/// Copies of every chosen expert from which on a step of like tokens is not chance.
const MIN_UNIFORM: u32 = 16;

/// The steps of another reader without those.
pub(super) struct Repeats {
    inner: Box<dyn Steps>,
    keep: bool,
    file: Place,
    /// First step of the next group.
    ahead: Option<TraceStep>,
    /// Steps that are ready.
    ready: VecDeque<TraceStep>,
    run: Option<Run>,
    exhausted: bool,
    any: bool,
    identical: u64,
    uniform: u64,
    empty: u64,
    empty_layers: u64,
}

/// Identical steps in a row, all layers of each.
struct Run {
    layers: Vec<TraceStep>,
    /// Numbers of the first few.
    steps: Vec<u64>,
    length: u64,
}

impl Repeats {
    pub(super) fn new(inner: Box<dyn Steps>, options: &ImportOptions, file: Place) -> Self {
        Self {
            inner,
            keep: options.keep_repeats,
            file,
            ahead: None,
            ready: VecDeque::new(),
            run: None,
            exhausted: false,
            any: false,
            identical: 0,
            uniform: 0,
            empty: 0,
            empty_layers: 0,
        }
    }

    /// All layers of the next step.
    fn next_group(&mut self) -> Result<Vec<TraceStep>, TraceError> {
        let mut group: Vec<TraceStep> = self.ahead.take().into_iter().collect();
        while let Some(step) = self.inner.next_step()? {
            if group
                .first()
                .is_some_and(|first| first.step() != step.step())
            {
                self.ahead = Some(step);
                break;
            }
            group.push(step);
        }
        Ok(group)
    }

    fn take(&mut self, mut group: Vec<TraceStep>) {
        let step = group[0].step();
        if group.iter().all(is_empty) {
            self.end_run();
            self.empty += 1;
            return;
        }
        let layers = group.len();
        group.retain(|layer| !is_empty(layer));
        self.empty_layers += (layers - group.len()) as u64;
        if let Some(run) = &mut self.run
            && same(&run.layers, &group)
        {
            run.length += 1;
            if run.length < MIN_STEPS {
                run.steps.push(step);
            }
            return;
        }
        self.end_run();
        if is_uniform(&group) {
            self.uniform += 1;
        } else {
            self.run = Some(Run {
                layers: group,
                steps: vec![step],
                length: 1,
            });
        }
    }

    fn end_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        if run.length >= MIN_STEPS {
            self.identical += run.length;
            return;
        }
        for &step in &run.steps[1..] {
            let copies = run.layers.iter().map(|layer| renumbered(layer, step));
            self.ready.extend(copies.collect::<Vec<_>>());
        }
        // The first ones come first.
        for layer in run.layers.into_iter().rev() {
            self.ready.push_front(layer);
        }
    }
}

impl Steps for Repeats {
    fn next_step(&mut self) -> Result<Option<TraceStep>, TraceError> {
        if self.keep {
            return self.inner.next_step();
        }
        while self.ready.is_empty() && !self.exhausted {
            let group = self.next_group()?;
            if group.is_empty() {
                self.exhausted = true;
                self.end_run();
            } else {
                self.take(group);
            }
        }
        let step = self.ready.pop_front();
        if step.is_none() && !self.any {
            return Err(TraceError::invalid(
                self.file.clone(),
                "steps of real traffic (--keep-repeats keeps all)",
                format!(
                    "{} identical ones, {} of like tokens and {} without tokens",
                    self.identical, self.uniform, self.empty
                ),
            ));
        }
        self.any = true;
        Ok(step)
    }

    fn report(&self, report: &mut ImportReport) {
        self.inner.report(report);
        report.dropped_identical_steps += self.identical;
        report.dropped_uniform_steps += self.uniform;
        report.dropped_empty_steps += self.empty;
        report.dropped_empty_layers += self.empty_layers;
    }
}

/// Whether two steps are equal in all layers, their numbers aside. Steps of single tokens are
/// looked at token by token before.
fn same(one: &[TraceStep], other: &[TraceStep]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|pair| match pair {
            (TraceStep::Counts(one), TraceStep::Counts(other)) => {
                one.layer() == other.layer() && one.all_counts() == other.all_counts()
            }
            _ => false,
        })
}

fn is_empty(step: &TraceStep) -> bool {
    match step {
        TraceStep::Counts(step) => step.all_counts().iter().all(|&count| count == 0),
        TraceStep::Tokens(_) => false,
    }
}

/// Whether every token chose the same experts, in each of several layers: all chosen experts have
/// the same, large count, and they are few.
fn is_uniform(layers: &[TraceStep]) -> bool {
    let mut all = None;
    layers.len() > 1
        && layers.iter().all(|layer| match layer {
            TraceStep::Counts(step) => {
                let counts = step.all_counts();
                let mut chosen = counts.iter().copied().filter(|&count| count > 0);
                let first = chosen.next().unwrap_or(0);
                let more = chosen.clone().count();
                first >= MIN_UNIFORM
                    && *all.get_or_insert((first, more)) == (first, more)
                    && chosen.all(|count| count == first)
                    && 2 * (more + 1) <= counts.len()
            }
            TraceStep::Tokens(_) => false,
        })
}

fn renumbered(step: &TraceStep, number: u64) -> TraceStep {
    match step {
        TraceStep::Counts(step) => TraceStep::Counts(RoutingStep::from_checked(
            number,
            step.layer(),
            step.top_k(),
            step.num_experts(),
            step.all_counts().to_vec(),
        )),
        tokens @ TraceStep::Tokens(_) => tokens.clone(),
    }
}
