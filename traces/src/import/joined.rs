//! Recordings of one run, a file a rank, as one trace.

use super::{ImportReport, Imported, Steps};
use crate::error::{Place, TraceError};
use crate::format::TraceStep;
use crate::routing::RoutingStep;
use crate::tokens::TokenStep;

/// The steps that all parts have, with the source ranks of every part after those of the part before.
struct Joined {
    parts: Vec<Part>,
    /// Steps and layers left out, as a part lacks them.
    lacking: u64,
}

struct Part {
    steps: Box<dyn Steps>,
    /// The step at hand.
    ahead: Option<TraceStep>,
}

/// Joins `parts`, of the names beside them. Fails where they differ in experts or top-k.
pub(super) fn join(parts: Vec<(String, Imported)>) -> Result<Imported, TraceError> {
    let mut parts = parts.into_iter();
    let Some((first_name, first)) = parts.next() else {
        let expected = "at least one file";
        return Err(TraceError::invalid(Place::of("trace"), expected, "none"));
    };
    let (mut meta, mut report) = (first.meta, first.report);
    let mut joined = vec![Part::new(first.steps)];
    for (name, part) in parts {
        for (field, expected, found) in [
            ("experts", meta.experts, part.meta.experts),
            ("top_k", meta.top_k as usize, part.meta.top_k as usize),
        ] {
            if expected != found {
                return Err(TraceError::invalid(
                    Place::of(name.as_str()).field(field),
                    format!(
                        "{expected}, as in {first_name} (--trace-experts and --trace-top-k say it for all)"
                    ),
                    found.to_string(),
                ));
            }
        }
        meta.source_ranks += part.meta.source_ranks;
        for what in part.report.assumed {
            if !report.assumed.contains(&what) {
                report.assumed.push(what);
            }
        }
        joined.push(Part::new(part.steps));
    }
    meta.tokens_per_rank = None;
    report.layout += &format!(", {} files, one a rank", joined.len());
    report
        .assumed
        .push("source ranks are in the order of the files".into());
    Ok(Imported {
        meta,
        report,
        steps: Box::new(Joined {
            parts: joined,
            lacking: 0,
        }),
    })
}

impl Part {
    fn new(steps: Box<dyn Steps>) -> Self {
        Self { steps, ahead: None }
    }

    /// Step and layer at hand; none at the end.
    fn key(&mut self) -> Result<Option<(u64, u32)>, TraceError> {
        if self.ahead.is_none() {
            self.ahead = self.steps.next_step()?;
        }
        Ok(self.ahead.as_ref().map(|step| (step.step(), step.layer())))
    }
}

impl Joined {
    /// The next step and layer that all parts have.
    fn next_common(&mut self) -> Result<Option<(u64, u32)>, TraceError> {
        loop {
            let mut keys = Vec::with_capacity(self.parts.len());
            for part in &mut self.parts {
                keys.push(part.key()?);
            }
            let latest = keys.iter().max().copied().flatten();
            if keys.contains(&None) {
                self.lacking += u64::from(latest.is_some());
                return Ok(None);
            }
            if keys.iter().all(|key| *key == latest) {
                return Ok(latest);
            }
            for (part, key) in self.parts.iter_mut().zip(keys) {
                if key < latest {
                    part.ahead = None;
                    self.lacking += 1;
                }
            }
        }
    }
}

impl Steps for Joined {
    fn next_step(&mut self) -> Result<Option<TraceStep>, TraceError> {
        let Some((step, layer)) = self.next_common()? else {
            return Ok(None);
        };
        let of_all: Vec<TraceStep> = self
            .parts
            .iter_mut()
            .filter_map(|part| part.ahead.take())
            .collect();
        if let Some(tokens) = of_all.iter().map(tokens_of).collect::<Option<Vec<_>>>() {
            return join_tokens(step, layer, &tokens).map(Some);
        }
        let counts: Vec<RoutingStep> = of_all.into_iter().map(TraceStep::into_counts).collect();
        let (top_k, experts) = (counts[0].top_k(), counts[0].num_experts());
        let rows = counts.iter().flat_map(|part| part.all_counts());
        let rows = rows.copied().collect();
        RoutingStep::new(step, layer, top_k, experts, rows)
            .map(|step| Some(TraceStep::Counts(step)))
    }

    fn report(&self, report: &mut ImportReport) {
        self.parts.iter().for_each(|part| part.steps.report(report));
        report.lacking_steps += self.lacking;
    }
}

fn tokens_of(step: &TraceStep) -> Option<&TokenStep> {
    match step {
        TraceStep::Tokens(step) => Some(step),
        TraceStep::Counts(_) => None,
    }
}

fn join_tokens(step: u64, layer: u32, parts: &[&TokenStep]) -> Result<TraceStep, TraceError> {
    let (top_k, experts) = (parts[0].top_k(), parts[0].num_experts());
    let ranks = |part: &&TokenStep| -> Vec<usize> {
        (0..part.source_ranks())
            .map(|rank| part.tokens(rank))
            .collect()
    };
    let tokens: Vec<usize> = parts.iter().flat_map(ranks).collect();
    let ids = parts
        .iter()
        .flat_map(|part| part.all_ids())
        .copied()
        .collect();
    let scores: Option<Vec<&[f32]>> = parts.iter().map(|part| part.all_scores()).collect();
    let scores = scores.map(|scores| scores.concat());
    TokenStep::new(step, layer, top_k, experts, &tokens, ids, scores).map(TraceStep::Tokens)
}
