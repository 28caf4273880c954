//! Every published figure of the paper that we were given, and how to simulate it.

mod adaptive;
mod elsewhere;
mod layer;
mod model;

use super::lab::Lab;
use super::{Outcome, Status};
use adaptive::{figure12, figure13, table6};
use elsewhere::{first_version, not_simulated, repository_plot};
use layer::{figure14, table2, table5};
use model::{table7, table12};
use moeplan_sim::spec::SpecError;
use rayon::prelude::*;

type Simulate = Box<dyn Fn(&Lab) -> Result<f64, SpecError> + Send + Sync>;

struct Case {
    id: String,
    source: &'static str,
    quantity: String,
    unit: &'static str,
    published: f64,
    status: Status,
    goal: Option<f64>,
    note: &'static str,
    simulate: Option<Simulate>,
}

/// All published cases, simulated in `lab`, in the order of the paper.
///
/// # Errors
/// A setting the simulator cannot run.
pub fn outcomes(lab: &Lab) -> Result<Vec<Outcome>, SpecError> {
    let mut cases = Vec::new();
    cases.extend(table2());
    cases.extend(figure14());
    cases.extend(table5());
    cases.extend(figure13());
    cases.extend(figure12());
    cases.extend(table7());
    cases.extend(table12());
    cases.extend(first_version());
    cases.extend(repository_plot());
    cases.extend(not_simulated());
    let mut outcomes: Vec<Outcome> = cases
        .par_iter()
        .map(|case| case.run(lab))
        .collect::<Result<_, _>>()?;
    let at = outcomes
        .iter()
        .position(|outcome| outcome.id.starts_with("fig13"))
        .unwrap_or(outcomes.len());
    outcomes.splice(at..at, table6(lab)?);
    Ok(outcomes)
}

impl Case {
    fn run(&self, lab: &Lab) -> Result<Outcome, SpecError> {
        let simulated = self
            .simulate
            .as_ref()
            .map(|simulate| simulate(lab))
            .transpose()?;
        Ok(Outcome {
            id: self.id.clone(),
            source: self.source.into(),
            quantity: self.quantity.clone(),
            unit: self.unit,
            published: self.published,
            simulated,
            relative_error: simulated.map(|ours| relative(self.unit, ours, self.published)),
            status: self.status,
            goal: self.goal,
            note: self.note.into(),
        })
    }
}

/// Ours over theirs less one; for gains in percent the error of the ratio of times behind them.
fn relative(unit: &str, ours: f64, theirs: f64) -> f64 {
    match unit {
        "%" => (100.0 + ours) / (100.0 + theirs) - 1.0,
        _ => ours / theirs - 1.0,
    }
}

fn case(
    id: impl Into<String>,
    source: &'static str,
    quantity: impl Into<String>,
    unit: &'static str,
    published: f64,
    simulate: impl Fn(&Lab) -> Result<f64, SpecError> + Send + Sync + 'static,
) -> Case {
    Case {
        id: id.into(),
        source,
        quantity: quantity.into(),
        unit,
        published,
        status: Status::Predicted,
        goal: None,
        note: "",
        simulate: Some(Box::new(simulate)),
    }
}

impl Case {
    fn goal(self, goal: f64) -> Case {
        Case {
            goal: Some(goal),
            ..self
        }
    }

    fn fitted(self, note: &'static str) -> Case {
        Case {
            status: Status::Fitted,
            note,
            ..self
        }
    }

    fn excluded(self, note: &'static str) -> Case {
        Case {
            status: Status::Excluded,
            note,
            ..self
        }
    }

    fn note(self, note: &'static str) -> Case {
        Case { note, ..self }
    }
}
