//! What-if: other settings, chosen in the dashboard, and what they do to the step at hand.

use super::state::{Effect, State};
use crate::run_file::model::STAGES;

/// A setting that can be changed, and the values offered. The first leaves it as it is.
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// The values, for people.
    pub values: &'static [&'static str],
}

/// The settings.
pub const FIELDS: [Field; 6] = [
    Field {
        name: "GPUs",
        values: &["as is", "x 2", "x 4", "x 8", "/ 8", "/ 4", "/ 2"],
    },
    Field {
        name: "capacity factor",
        values: &[
            "as is",
            "as needed",
            "0.5",
            "1.0",
            "1.25",
            "1.5",
            "2.0",
            "4.0",
        ],
    },
    Field {
        name: "pipelining degree",
        values: &["as is", "1", "2", "4", "8", "auto"],
    },
    Field {
        name: "NIC speed",
        values: &["as is", "x 2", "x 4", "x 8", "/ 4", "/ 2"],
    },
    Field {
        name: "all-to-all",
        values: &["as is", "linear", "2dh", "auto"],
    },
    Field {
        name: "padding",
        values: &["as is", "capacity", "dropless"],
    },
];

/// Other settings: the value chosen for each field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change(pub [usize; FIELDS.len()]);

impl Change {
    /// The value of field `index`, for people; none where it stays as it is.
    pub fn value(&self, index: usize) -> Option<&'static str> {
        let values = FIELDS[index].values;
        (self.0[index] > 0).then(|| values[self.0[index] % values.len()])
    }

    /// The factor of field `index`, `x 2` or `/ 2`.
    pub fn factor(&self, index: usize) -> f64 {
        let scaled = |text: &str| {
            let (how, by) = text.split_once(' ')?;
            let by: f64 = by.parse().ok()?;
            Some(if how == "/" { 1.0 / by } else { by })
        };
        self.value(index).and_then(scaled).unwrap_or(1.0)
    }
}

/// A step under some settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Brief {
    /// W.
    pub gpus: u64,
    /// The plan, as people write it.
    pub plan: String,
    /// Step time, ns.
    pub time: u64,
    /// By stage, ns.
    pub stages: [u64; STAGES],
    /// Exposed communication, ns.
    pub exposed: u64,
    /// Most memory a GPU needs.
    pub memory_bytes: u64,
    /// Memory a GPU has.
    pub memory_available: u64,
    /// Capacity factor in force.
    pub capacity_factor: f64,
    /// Share of token copies dropped.
    pub dropped: f64,
    /// Tokens of all GPUs.
    pub tokens: u64,
}

/// What other settings do.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The settings.
    pub change: Change,
    /// The step.
    pub step: u32,
    /// The strategy.
    pub strategy: u16,
    /// Without them.
    pub before: Brief,
    /// With them.
    pub after: Brief,
}

/// Up and down choose the setting, left and right its value.
pub fn steer(state: &mut State, right: isize, down: isize) -> Option<Effect> {
    let whatif = &mut state.whatif;
    let fields = FIELDS.len() as isize;
    whatif.field = (whatif.field as isize + down).rem_euclid(fields) as usize;
    if right == 0 {
        return None;
    }
    let values = FIELDS[whatif.field].values.len() as isize;
    let value = &mut whatif.change.0[whatif.field];
    *value = (*value as isize + right).rem_euclid(values) as usize;
    whatif.answer = None;
    ask(state)
}

/// Asks for what the settings do.
pub fn ask(state: &mut State) -> Option<Effect> {
    if !state.can_simulate {
        return None;
    }
    let step = state.step()?.index;
    state.whatif.pending = true;
    Some(Effect::WhatIf {
        step,
        strategy: state.strategy as u16,
        change: state.whatif.change,
    })
}
