//! The real world: slow GPUs, bad links, other people's traffic and failures, drawn from stated
//! distributions by named seeds; answers are percentiles with confidence intervals.

mod disturbance;
mod goodput;
mod percentile;
mod study;

pub use disturbance::{Disturbances, Draw};
pub use goodput::{Failures, Goodput, GoodputError, goodput};
pub use percentile::{Interval, Percentiles};
pub use study::{WorldStep, study};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// A number from 0 up to 1, 53 bits of it.
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}
