//! Random variables on `libm`, which gives the same bits on every platform. `rand_distr` takes its
//! logarithms from the platform wherever any crate of the build asks for `std`, so its draws are
//! not the same everywhere.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// Uniform, above 0 and below 1.
pub(super) fn open_unit(rng: &mut ChaCha8Rng) -> f64 {
    ((rng.next_u64() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
}

/// A standard normal variable, by the polar method.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    loop {
        let (x, y) = (2.0 * open_unit(rng) - 1.0, 2.0 * open_unit(rng) - 1.0);
        let square = x * x + y * y;
        if square > 0.0 && square < 1.0 {
            return x * libm::sqrt(-2.0 * libm::log(square) / square);
        }
    }
}

/// Logarithm of a gamma variable of shape at least 1 (Marsaglia and Tsang 2000).
fn log_gamma(rng: &mut ChaCha8Rng, shape: f64) -> f64 {
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / libm::sqrt(9.0 * d);
    loop {
        let x = normal(rng);
        let cube = (1.0 + c * x) * (1.0 + c * x) * (1.0 + c * x);
        if cube <= 0.0 {
            continue;
        }
        let log_cube = libm::log(cube);
        if libm::log(open_unit(rng)) < 0.5 * x * x + d * (1.0 - cube + log_cube) {
            return libm::log(d) + log_cube;
        }
    }
}

/// Dirichlet shares up to a common factor: gamma variables, kept as logarithms because those of
/// small concentrations underflow.
pub(super) fn dirichlet(rng: &mut ChaCha8Rng, alpha: f64, experts: usize) -> Vec<f64> {
    let logs: Vec<f64> = (0..experts)
        .map(|_| log_gamma(rng, alpha + 1.0) + libm::log(open_unit(rng)) / alpha)
        .collect();
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logs.iter().map(|log| libm::exp(log - most)).collect()
}

/// Independent loads with density in proportion to `x^-exponent` between 1 and `most`, by
/// inversion of the distribution function.
pub(super) fn power_law(
    rng: &mut ChaCha8Rng,
    exponent: f64,
    most: f64,
    experts: usize,
) -> Vec<f64> {
    // 1 - exponent below 0; the limit at exponent 1 is excluded by the range of the setting.
    let tail = 1.0 - exponent;
    let last = libm::pow(most, tail);
    (0..experts)
        .map(|_| libm::pow(1.0 - open_unit(rng) * (1.0 - last), 1.0 / tail))
        .collect()
}
