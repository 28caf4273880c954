//! Holds the simulator against published and measured figures.

pub mod executor;
pub mod lab;
pub mod predict;
pub mod published;
pub mod record;
pub mod report;
pub mod tables;

use serde::Serialize;

/// How a case counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// No constant was fitted to it.
    Predicted,
    /// A constant was fitted to it, or to a figure it contains.
    Fitted,
    /// Published, but its setting is not stated or not simulated: shown, not counted.
    Excluded,
}

impl Status {
    /// Its name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Status::Predicted => "predicted",
            Status::Fitted => "fitted",
            Status::Excluded => "excluded",
        }
    }
}

/// One published figure beside ours.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Stable name.
    pub id: String,
    /// Where it was published.
    pub source: String,
    /// What it is.
    pub quantity: String,
    /// Its unit.
    pub unit: &'static str,
    /// The published figure.
    pub published: f64,
    /// Ours; `None` where it is not simulated.
    pub simulated: Option<f64>,
    /// Ours over theirs, less one. For gains in percent: the error of the ratio of times.
    pub relative_error: Option<f64>,
    /// How it counts.
    pub status: Status,
    /// The error it may have, as a fraction; `None` where no goal was set.
    pub goal: Option<f64>,
    /// What a reader should know.
    pub note: String,
}

impl Outcome {
    /// Whether it misses its goal. The goal of a gain in percent is in points.
    pub fn misses(&self) -> bool {
        let error = match self.unit {
            "%" => self.simulated.map(|ours| (ours - self.published) / 100.0),
            _ => self.relative_error,
        };
        matches!((self.goal, error), (Some(goal), Some(error)) if error.abs() > goal)
    }
}
