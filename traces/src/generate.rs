//! Made-up routing from a short specification, such as `zipf:1.2,drift=0.1`.

use std::fmt;
use std::str::FromStr;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Serialize};

use crate::draw::{Shares, below, fill_rows, stream};
use crate::error::{Place, TraceError, quote};
use crate::routing::{RoutingStep, Shape};

/// How the popularity of experts is spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Popularity {
    /// Perfectly even and without sampling noise (`zipf:0` is even with noise).
    Uniform,
    /// The expert of rank `i` is chosen in proportion to `i^-exponent`; which expert has which
    /// rank is drawn once per layer.
    Zipf(f64),
    /// Shares drawn once per layer from a symmetric Dirichlet distribution; small concentrations
    /// are skewed, large ones even.
    Dirichlet(f64),
    /// One expert, drawn once per layer, gets this share of all copies; the others are even.
    Hot(f64),
}

/// What to generate: a [`Popularity`] and how fast it moves.
///
/// Written `uniform`, `zipf:1.2`, `dirichlet:0.3` or `hot:0.25`, then optionally `,drift=0.1`.
/// Prints as it is written. All ranks draw from the same shares.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RoutingSpec {
    /// The spread at step 0.
    pub popularity: Popularity,
    /// Experts by which popularity moves along in one step: at step `s` expert `e` has mixed the
    /// shares of its neighbours `e - floor(s * drift)` and the one before, so that after
    /// `1 / drift` steps every expert has what its neighbour had. Only for spreads that are not
    /// uniform.
    pub drift: f64,
}

const MAX_ZIPF: f64 = 10.0;
const DIRICHLET: (f64, f64) = (1e-3, 1e6);

impl RoutingSpec {
    /// The routing of one step of one layer.
    ///
    /// The same arguments give the same counts on every platform. No expert can be chosen by more
    /// than every token, so with top-k its share of the copies ends at `1/k`.
    pub fn generate(
        &self,
        shape: &Shape,
        seed: u64,
        step: u64,
        layer: u32,
    ) -> Result<RoutingStep, TraceError> {
        shape.check()?;
        self.check()?;
        if self.popularity == Popularity::Uniform {
            return RoutingStep::uniform(shape, step, layer);
        }
        let weights = self.weights(shape.experts, seed, step, layer);
        let shares = [Shares::new(&weights, shape.top_k)];
        let counts = fill_rows(shape, &shares, 1, |rank| {
            stream(seed, "generate", step, layer, rank)
        });
        Ok(RoutingStep::from_checked(
            step,
            layer,
            shape.top_k,
            shape.experts,
            counts,
        ))
    }

    /// Fails when a number is outside its range; a parsed specification never is.
    pub fn check(&self) -> Result<(), TraceError> {
        let fail = |field: &str, expected: String, found: f64| {
            let place = Place::of("routing").field(field);
            Err(TraceError::invalid(place, expected, found.to_string()))
        };
        match self.popularity {
            Popularity::Zipf(exponent) if !(0.0..=MAX_ZIPF).contains(&exponent) => fail(
                "zipf",
                format!("an exponent from 0 to {MAX_ZIPF}"),
                exponent,
            ),
            Popularity::Dirichlet(alpha) if !(DIRICHLET.0..=DIRICHLET.1).contains(&alpha) => fail(
                "dirichlet",
                format!("a concentration from {} to {}", DIRICHLET.0, DIRICHLET.1),
                alpha,
            ),
            Popularity::Hot(share) if !(0.0..=1.0).contains(&share) => {
                fail("hot", "a share from 0 to 1".into(), share)
            }
            _ if !(0.0..=1.0).contains(&self.drift) => {
                fail("drift", "experts per step, from 0 to 1".into(), self.drift)
            }
            Popularity::Uniform if self.drift > 0.0 => fail(
                "drift",
                "none: uniform popularity cannot drift".into(),
                self.drift,
            ),
            _ => Ok(()),
        }
    }

    fn weights(&self, experts: usize, seed: u64, step: u64, layer: u32) -> Vec<u128> {
        let mut rng = stream(seed, "popularity", 0, layer, 0);
        let still: Vec<f64> = match self.popularity {
            Popularity::Uniform => vec![1.0; experts],
            Popularity::Zipf(exponent) => {
                let mut weights: Vec<f64> = (1..=experts)
                    .map(|rank| libm::pow(rank as f64, -exponent))
                    .collect();
                for i in (1..experts).rev() {
                    weights.swap(i, below(&mut rng, i + 1));
                }
                weights
            }
            Popularity::Dirichlet(alpha) => dirichlet(&mut rng, alpha, experts),
            Popularity::Hot(share) if experts > 1 => {
                let mut weights = vec![(1.0 - share) / (experts - 1) as f64; experts];
                weights[below(&mut rng, experts)] = share;
                weights
            }
            Popularity::Hot(_) => vec![1.0],
        };
        let moved = step as f64 * self.drift;
        let (whole, part) = (libm::floor(moved), moved - libm::floor(moved));
        let whole = (whole as u64 % experts as u64) as usize;
        let at = |expert: usize, back: usize| still[(expert + 2 * experts - back) % experts];
        let mixed: Vec<f64> = (0..experts)
            .map(|e| (1.0 - part) * at(e, whole) + part * at(e, whole + 1))
            .collect();
        let most = mixed.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let unit = (1_u64 << 52) as f64;
        mixed.iter().map(|w| (w / most * unit) as u128).collect()
    }
}

/// Dirichlet shares up to a common factor: gamma variables, kept as logarithms because those of
/// small concentrations underflow.
fn dirichlet(rng: &mut ChaCha8Rng, alpha: f64, experts: usize) -> Vec<f64> {
    let logs: Vec<f64> = (0..experts)
        .map(|_| log_gamma_draw(rng, alpha + 1.0) + libm::log(open_unit(rng)) / alpha)
        .collect();
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logs.iter().map(|log| libm::exp(log - most)).collect()
}

/// Logarithm of a gamma variable of shape at least 1 (Marsaglia and Tsang 2000). Written here
/// because `rand_distr` takes its logarithms from the platform.
fn log_gamma_draw(rng: &mut ChaCha8Rng, shape: f64) -> f64 {
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

/// Uniform, above 0 and below 1.
fn open_unit(rng: &mut ChaCha8Rng) -> f64 {
    ((rng.next_u64() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
}

impl fmt::Display for RoutingSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.popularity {
            Popularity::Uniform => write!(f, "uniform")?,
            Popularity::Zipf(exponent) => write!(f, "zipf:{exponent}")?,
            Popularity::Dirichlet(alpha) => write!(f, "dirichlet:{alpha}")?,
            Popularity::Hot(share) => write!(f, "hot:{share}")?,
        }
        if self.drift > 0.0 {
            write!(f, ",drift={}", self.drift)?;
        }
        Ok(())
    }
}

impl FromStr for RoutingSpec {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        let place = |field: &str| Place::of("routing").field(field);
        let number = |field: &str, text: &str| {
            text.parse::<f64>()
                .map_err(|_| TraceError::invalid(place(field), "a number", quote(text.as_bytes())))
        };
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let (kind, value) = match first.split_once(':') {
            Some((kind, value)) => (kind, Some(value)),
            None => (first, None),
        };
        let popularity = match (kind, value) {
            ("uniform", None) => Popularity::Uniform,
            ("zipf", Some(value)) => Popularity::Zipf(number("zipf", value)?),
            ("dirichlet", Some(value)) => Popularity::Dirichlet(number("dirichlet", value)?),
            ("hot", Some(value)) => Popularity::Hot(number("hot", value)?),
            ("zipf" | "dirichlet" | "hot", None) => {
                let expected = format!("`{kind}:` and a number");
                return Err(TraceError::invalid(
                    place(kind),
                    expected,
                    quote(first.as_bytes()),
                ));
            }
            _ => {
                return Err(TraceError::invalid(
                    place("popularity"),
                    "uniform, zipf:EXPONENT, dirichlet:CONCENTRATION or hot:SHARE",
                    quote(first.as_bytes()),
                ));
            }
        };
        let mut drift = None;
        for part in parts {
            match part.split_once('=') {
                Some(("drift", value)) if drift.is_none() => drift = Some(number("drift", value)?),
                _ => {
                    return Err(TraceError::invalid(
                        place("options"),
                        "drift=EXPERTS_PER_STEP, once",
                        quote(part.as_bytes()),
                    ));
                }
            }
        }
        // `+ 0.0` makes a negative zero plain, which would not print.
        let drift = drift.unwrap_or(0.0) + 0.0;
        let spec = Self { popularity, drift };
        spec.check()?;
        Ok(spec)
    }
}

impl TryFrom<String> for RoutingSpec {
    type Error = TraceError;

    fn try_from(text: String) -> Result<Self, TraceError> {
        text.parse()
    }
}

impl From<RoutingSpec> for String {
    fn from(spec: RoutingSpec) -> Self {
        spec.to_string()
    }
}
