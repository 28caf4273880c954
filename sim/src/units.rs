//! Quantities as types: integer picoseconds, bytes, and bandwidth.
//!
//! Every rounding of the simulator happens here, so a figure can be reproduced to the last digit.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};

/// A point in simulated time or a span of it, in integer picoseconds.
///
/// One byte at 300 GB/s takes 3.3 ps, and a `u64` of picoseconds spans 213 days, so neither a
/// small message nor a long run is rounded away. All arithmetic saturates.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Time(u64);

impl Time {
    /// The start of the simulation, and the empty span.
    pub const ZERO: Time = Time(0);
    /// The largest representable time (213 days); results saturate here.
    pub const MAX: Time = Time(u64::MAX);

    /// A span of `ps` picoseconds.
    pub const fn from_ps(ps: u64) -> Time {
        Time(ps)
    }

    /// A span of `ns` nanoseconds.
    pub const fn from_ns(ns: u64) -> Time {
        Time(ns.saturating_mul(1_000))
    }

    /// A span of `us` microseconds.
    pub const fn from_us(us: u64) -> Time {
        Time(us.saturating_mul(1_000_000))
    }

    /// The span of `seconds`, rounded to the nearest picosecond. Negative and NaN become zero.
    pub fn from_secs_f64(seconds: f64) -> Time {
        // A float-to-integer cast saturates and sends NaN to zero: exactly what is wanted.
        Time((seconds * 1e12).round() as u64)
    }

    /// Picoseconds.
    pub const fn as_ps(self) -> u64 {
        self.0
    }

    /// Whole nanoseconds, rounded to nearest: the unit of every report.
    pub const fn as_ns(self) -> u64 {
        self.0.saturating_add(500) / 1_000
    }

    /// Seconds, for display and ratios.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 * 1e-12
    }

    /// Milliseconds, for display and ratios.
    pub fn as_ms_f64(self) -> f64 {
        self.0 as f64 * 1e-9
    }

    /// `self - other`, or zero where that would be negative.
    pub const fn saturating_sub(self, other: Time) -> Time {
        Time(self.0.saturating_sub(other.0))
    }

    /// This span `n` times over.
    pub const fn times(self, n: u64) -> Time {
        Time(self.0.saturating_mul(n))
    }

    /// This span scaled by a non-negative factor, rounded to nearest.
    pub fn scale(self, factor: f64) -> Time {
        Time((self.0 as f64 * factor).round() as u64)
    }

    /// The slowest but a twentieth; zero where there is none.
    pub fn p95(times: impl Iterator<Item = Time>) -> Time {
        let mut times: Vec<Time> = times.collect();
        times.sort_unstable();
        let rank = (times.len() * 95).div_ceil(100).max(1) - 1;
        times.get(rank).copied().unwrap_or(Time::ZERO)
    }

    /// The mean, rounded down: never above what is averaged.
    pub fn mean(times: impl ExactSizeIterator<Item = Time>) -> Time {
        let count = times.len().max(1) as u128;
        let total: u128 = times.map(|time| u128::from(time.as_ps())).sum();
        Time::from_ps(u64::try_from(total / count).unwrap_or(u64::MAX))
    }
}

impl Add for Time {
    type Output = Time;
    fn add(self, other: Time) -> Time {
        Time(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Time {
    fn add_assign(&mut self, other: Time) {
        *self = *self + other;
    }
}

impl Sub for Time {
    type Output = Time;
    fn sub(self, other: Time) -> Time {
        self.saturating_sub(other)
    }
}

impl Sum for Time {
    fn sum<I: Iterator<Item = Time>>(iter: I) -> Time {
        iter.fold(Time::ZERO, Add::add)
    }
}

impl fmt::Display for Time {
    /// Three significant digits in the unit a reader expects: `12.3 ms`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ps = self.0 as f64;
        let (value, unit) = match self.0 {
            0 => return f.pad("0"),
            1..1_000 => (ps, "ps"),
            1_000..1_000_000 => (ps / 1e3, "ns"),
            1_000_000..1_000_000_000 => (ps / 1e6, "us"),
            1_000_000_000..1_000_000_000_000 => (ps / 1e9, "ms"),
            _ => (ps / 1e12, "s"),
        };
        let digits = if value >= 99.95 {
            0
        } else if value >= 9.995 {
            1
        } else {
            2
        };
        f.pad(&format!("{value:.digits$} {unit}"))
    }
}

/// A rate of transfer in bytes per second. It is never zero, so a division by it is always defined.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Bandwidth(f64);

impl Bandwidth {
    /// A bandwidth of `bytes_per_second`, or `None` unless that is finite and positive.
    pub fn from_bytes_per_second(bytes_per_second: f64) -> Option<Bandwidth> {
        (bytes_per_second.is_finite() && bytes_per_second > 0.0)
            .then_some(Bandwidth(bytes_per_second))
    }

    /// Bytes per second.
    pub const fn bytes_per_second(self) -> f64 {
        self.0
    }

    /// Gigabytes (10^9 bytes) per second.
    pub fn gbps(self) -> f64 {
        self.0 / 1e9
    }

    /// The span `bytes` take at this rate, rounded up to a picosecond: a transfer never ends before
    /// its last byte has passed.
    pub fn time_for(self, bytes: u64) -> Time {
        Time((bytes as f64 / self.0 * 1e12).ceil() as u64)
    }
}

impl TryFrom<f64> for Bandwidth {
    type Error = String;
    /// From gigabytes per second, the unit of the configuration files.
    fn try_from(gigabytes_per_second: f64) -> Result<Self, String> {
        Bandwidth::from_bytes_per_second(gigabytes_per_second * 1e9).ok_or_else(|| {
            format!("expected a bandwidth above 0 GB/s, found {gigabytes_per_second}")
        })
    }
}

impl From<Bandwidth> for f64 {
    fn from(bandwidth: Bandwidth) -> f64 {
        bandwidth.gbps()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_never_ends_before_its_last_byte() {
        let port = Bandwidth::from_bytes_per_second(300e9).unwrap();
        assert_eq!(port.time_for(1), Time::from_ps(4));
        assert_eq!(port.time_for(300_000_000_000), Time::from_us(1_000_000));
    }

    #[test]
    fn display_picks_the_unit_a_reader_expects() {
        assert_eq!(Time::from_ns(12_345_678).to_string(), "12.3 ms");
        assert_eq!(Time::from_us(999).to_string(), "999 us");
        assert_eq!(Time::ZERO.to_string(), "0");
    }

    #[test]
    fn bandwidth_refuses_zero_negative_and_nan() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Bandwidth::from_bytes_per_second(bad).is_none());
        }
    }
}
