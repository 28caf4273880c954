//! A run as far as it is known: what the blocks of a run file add up to.

use crate::run_file::model::STAGES;
use crate::run_file::{Block, Detail, End, Header, Layers, RunRecord, StepRecord};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Sums over all steps of a strategy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Totals {
    /// Step times.
    pub time: u128,
    /// By stage.
    pub stages: [u128; STAGES],
    /// Exposed communication.
    pub exposed: u128,
    /// All-to-Alls.
    pub all_to_all: u128,
    /// Time lost against the best plan, over steps where it is known.
    pub regret: u128,
    /// Steps where it is known.
    pub with_oracle: u64,
    /// Shares of copies dropped.
    pub dropped: f64,
    /// Capacity factors.
    pub capacity_factor: f64,
    /// Most memory of any step.
    pub memory: u64,
    /// Steps that do not fit.
    pub too_large: u64,
    /// Steps in which a plan was tried.
    pub trials: u64,
    /// Simulated times of measured steps, and their number.
    pub predicted: (u128, u64),
    /// Relative differences of simulated and measured times.
    pub error: f64,
    /// Slowest step.
    pub slowest: u64,
}

impl Totals {
    fn add(&mut self, run: &RunRecord) {
        let wide = u128::from;
        self.time += wide(run.time);
        for (sum, stage) in self.stages.iter_mut().zip(run.stages) {
            *sum += wide(stage);
        }
        self.exposed += wide(run.exposed);
        self.all_to_all += wide(run.all_to_all);
        if let Some(oracle) = run.oracle {
            self.regret += wide(run.time.saturating_sub(oracle));
            self.with_oracle += 1;
        }
        self.dropped += run.dropped;
        self.capacity_factor += run.capacity_factor;
        self.memory = self.memory.max(run.memory_bytes);
        self.too_large += u64::from(!run.fits);
        self.trials += u64::from(run.trial);
        self.slowest = self.slowest.max(run.time);
        if let Some(predicted) = run.predicted {
            self.predicted.0 += wide(predicted);
            self.predicted.1 += 1;
            self.error += (predicted as f64 / run.time.max(1) as f64 - 1.0).abs();
        }
    }
}

/// A run as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// What it is; nothing else is there before it.
    pub header: Option<Header>,
    /// Its steps.
    pub steps: Vec<StepRecord>,
    /// Steps in full, by (step, strategy).
    pub details: BTreeMap<(u32, u16), Arc<Detail>>,
    /// Layers of the trace.
    pub layers: Option<Arc<Layers>>,
    /// How it ended, once it has.
    pub end: Option<End>,
    /// By strategy.
    pub totals: Vec<Totals>,
    /// Plans in the order they first ran; their place is their letter.
    pub plans: Vec<Arc<str>>,
}

impl Recording {
    /// Takes the next block.
    ///
    /// # Errors
    /// A block that does not belong to this run.
    pub fn push(&mut self, block: Block) -> Result<(), String> {
        let strategies = self.strategies();
        match block {
            Block::Header(header) => {
                if self.header.is_some() {
                    return Err("a second header".into());
                }
                self.totals = vec![Totals::default(); header.strategies.len()];
                self.header = Some(*header);
            }
            Block::Steps(steps) => {
                if steps.iter().any(|step| step.runs.len() != strategies) {
                    return Err("a step of other strategies".into());
                }
                steps.into_iter().for_each(|step| self.push_step(step));
            }
            Block::Detail(detail) => {
                let gpus = self.header.as_ref().map(|header| header.gpus);
                if usize::from(detail.strategy) >= strategies
                    || gpus != Some(u64::from(detail.gpus))
                {
                    return Err("a step of another run".into());
                }
                self.details.insert((detail.step, detail.strategy), detail);
            }
            Block::Layers(layers) => self.layers = Some(layers),
            Block::End(end) => self.end = Some(end),
        }
        Ok(())
    }

    fn push_step(&mut self, mut step: StepRecord) {
        for (run, totals) in step.runs.iter_mut().zip(&mut self.totals) {
            totals.add(run);
            // One text a plan, however many blocks name it.
            match self.plans.iter().find(|known| **known == run.plan) {
                Some(known) => run.plan = known.clone(),
                None => self.plans.push(run.plan.clone()),
            }
        }
        step.routing.bins.shrink_to_fit();
        step.routing.hottest.shrink_to_fit();
        self.steps.push(step);
    }

    /// Number of strategies.
    pub fn strategies(&self) -> usize {
        self.totals.len()
    }

    /// Name of strategy `index`.
    pub fn name(&self, index: usize) -> &str {
        self.header
            .as_ref()
            .and_then(|header| header.strategies.get(index))
            .map_or("", String::as_str)
    }

    /// The letter of a plan.
    pub fn letter(&self, plan: &str) -> char {
        let place = self.plans.iter().position(|known| **known == *plan);
        letter(place.unwrap_or(usize::MAX))
    }
}

/// The letter of the plan at `place`: A to Z, a to z, then `*`.
pub fn letter(place: usize) -> char {
    let letters = ('A'..='Z').chain('a'..='z');
    letters
        .chain(std::iter::once('*'))
        .nth(place)
        .unwrap_or('*')
}
