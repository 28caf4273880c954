//! Where a figure comes from, so that a reader knows how far to believe it.

use crate::units::Time;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a figure was obtained, from most to least trustworthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provenance {
    /// Read from a measured table at exactly this point.
    Measured,
    /// Between points of a measured table.
    Interpolated,
    /// A compact model fitted to measured tables, used inside the range it was fitted on.
    Fitted,
    /// First principles over datasheet or measured peak rates.
    Roofline,
    /// A fitted model or a table used outside the range it was measured on.
    Extrapolated,
}

impl Provenance {
    /// The less trustworthy of two: what a figure made of both deserves.
    pub fn worse(self, other: Provenance) -> Provenance {
        self.max(other)
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Provenance::Measured => "measured",
            Provenance::Interpolated => "interpolated",
            Provenance::Fitted => "fitted",
            Provenance::Roofline => "roofline",
            Provenance::Extrapolated => "extrapolated",
        })
    }
}

/// A span of time with its provenance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// The estimated span.
    pub time: Time,
    /// How it was obtained.
    pub provenance: Provenance,
}

impl Estimate {
    /// An estimate of `time` obtained by `provenance`.
    pub const fn new(time: Time, provenance: Provenance) -> Estimate {
        Estimate { time, provenance }
    }

    /// This estimate followed by another.
    pub fn then(self, next: Estimate) -> Estimate {
        Estimate::new(
            self.time + next.time,
            self.provenance.worse(next.provenance),
        )
    }
}
