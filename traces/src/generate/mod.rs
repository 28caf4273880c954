//! Made-up routing from a short specification, such as `zipf:1.2,drift=0.1`.

mod fit;
mod motion;
mod spec;
mod transition;
mod variates;
mod workload;

use serde::{Deserialize, Serialize};

use crate::draw::{Shares, Source, below, fill_rows, stream};
use crate::error::{Place, TraceError};
use crate::routing::{RoutingStep, Shape};

pub use fit::FittedTrace;
pub use transition::Transitions;
pub use workload::Workload;

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
    /// Independent weights with density in proportion to `x^-exponent` between 1 and the number
    /// of experts: the power law by which benchmarks of inference spread loads.
    Power(f64),
    /// One expert, drawn once per layer, gets this share of all copies; the others are even.
    Hot(f64),
    /// One of the workloads W0 to W7.
    Workload(Workload),
}

/// Ranks that read unlike data: rank `s` belongs to domain `s mod count`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Domains {
    /// Number of domains.
    pub count: u64,
    /// Part of a domain's popularity, 0 to 1, that is its own, drawn as the common one is.
    pub own: f64,
}

/// A needed capacity that moves through a run, as in Figure 1 of the Tutel paper.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Curve {
    /// The least capacity factor that popularity alone needs; sampling noise comes on top.
    pub least: f64,
    /// The most.
    pub most: f64,
    /// Steps of the run, after which the curve starts again.
    pub over: u64,
}

/// What to generate: a [`Popularity`], how it moves, and how ranks and layers differ.
///
/// Written as its popularity (`uniform`, `zipf:1.2`, `dirichlet:0.3`, `power:1.2`, `hot:0.25`, `w0`
/// to `w7`), then options after commas: `zipf:1.2,drift=0.1,domains=4,own=0.5`. Prints as it is
/// written. Applied in this order: phase, drift, domains, burst, balance, capacity, affinity.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RoutingSpec {
    /// The spread at step 0.
    pub popularity: Popularity,
    /// Experts by which popularity moves along in one step: at step `s` expert `e` has mixed the
    /// shares of its neighbours `e - floor(s * drift)` and the one before, so that after
    /// `1 / drift` steps every expert has what its neighbour had.
    pub drift: f64,
    /// Steps after which popularity is drawn anew (a change of phase); 0 for never.
    pub phase: u64,
    /// Only every so many steps popularity is uneven, in the last of them; 0 for always.
    pub burst: u64,
    /// Ranks that read unlike data.
    pub domains: Option<Domains>,
    /// Steps in which unevenness halves, as under a balancing loss; 0 for never.
    pub balance: f64,
    /// A needed capacity that moves through the run, in every layer by a curve of its own:
    /// popularity is flattened or sharpened (shares to a power) until its largest share needs
    /// what the curve says.
    pub capacity: Option<Curve>,
    /// Part of the tokens, 0 to 1, that follow from every expert to the same partner in the next
    /// layer (a permutation drawn once per layer) instead of choosing by popularity there.
    pub affinity: f64,
    /// Ranks differ in tokens: the first of every eight has all, the last lacks this part, those
    /// between them lie on a line.
    pub ragged: f64,
}

const MAX_ZIPF: f64 = 10.0;
const DIRICHLET: (f64, f64) = (1e-3, 1e6);
const POWER: (f64, f64) = (1.001, 10.0);
const MAX_DOMAINS: u64 = 1024;
/// Ranks over which [`RoutingSpec::ragged`] goes from all tokens to the fewest.
const RAGGED: usize = 8;

impl RoutingSpec {
    /// This popularity, unmoved and the same for all ranks.
    pub fn of(popularity: Popularity) -> Self {
        Self {
            popularity,
            drift: 0.0,
            phase: 0,
            burst: 0,
            domains: None,
            balance: 0.0,
            capacity: None,
            affinity: 0.0,
            ragged: 0.0,
        }
    }

    /// The routing of one step of one layer.
    ///
    /// The same arguments give the same counts on every platform. No expert can be chosen by more
    /// than every token, so with top-k its share of the copies ends at `1/k`. With an affinity the
    /// layers before are drawn too; [`RoutingSpec::generate_step`] draws each once.
    pub fn generate(
        &self,
        shape: &Shape,
        seed: u64,
        step: u64,
        layer: u32,
    ) -> Result<RoutingStep, TraceError> {
        if self.affinity > 0.0 {
            let mut layers = self.generate_step(shape, seed, step, layer + 1, None)?;
            // One for each of the `layer + 1` layers.
            return Ok(layers.swap_remove(layer as usize));
        }
        self.check_for(shape)?;
        self.layer(shape, seed, step, layer, None)
    }

    /// The routing of layers `0..layers` of one step. `transitions` replace popularity from the
    /// second layer on: tokens go from expert to expert as they were seen to.
    pub fn generate_step(
        &self,
        shape: &Shape,
        seed: u64,
        step: u64,
        layers: u32,
        transitions: Option<&Transitions>,
    ) -> Result<Vec<RoutingStep>, TraceError> {
        self.check_for(shape)?;
        if let Some(transitions) = transitions {
            transitions.check_for(shape)?;
        }
        let mut made: Vec<RoutingStep> = Vec::new();
        for layer in 0..layers {
            let before = made.last().map(|before| (before, transitions));
            let next = self.layer(shape, seed, step, layer, before)?;
            made.push(next);
        }
        Ok(made)
    }

    /// Fails when a number is outside its range; a parsed specification never is.
    pub fn check(&self) -> Result<(), TraceError> {
        let between = |field: &str, what: &str, (least, most): (f64, f64), found: f64| {
            if (least..=most).contains(&found) {
                return Ok(());
            }
            let place = Place::of("routing").field(field);
            let expected = format!("{what} from {least} to {most}");
            Err(TraceError::invalid(place, expected, found.to_string()))
        };
        match self.popularity {
            Popularity::Zipf(exponent) => {
                between("zipf", "an exponent", (0.0, MAX_ZIPF), exponent)?;
            }
            Popularity::Dirichlet(alpha) => {
                between("dirichlet", "a concentration", DIRICHLET, alpha)?;
            }
            Popularity::Power(exponent) => between("power", "an exponent", POWER, exponent)?,
            Popularity::Hot(share) => between("hot", "a share", (0.0, 1.0), share)?,
            Popularity::Uniform | Popularity::Workload(_) => {}
        }
        between("drift", "experts per step,", (0.0, 1.0), self.drift)?;
        between("balance", "steps", (0.0, 1e9), self.balance)?;
        between("affinity", "a part", (0.0, 1.0), self.affinity)?;
        between("ragged", "a part", (0.0, 1.0), self.ragged)?;
        if let Some(Domains { count, own }) = self.domains {
            between(
                "domains",
                "domains",
                (1.0, MAX_DOMAINS as f64),
                count as f64,
            )?;
            between("own", "a part", (0.0, 1.0), own)?;
        }
        if let Some(Curve { least, most, over }) = self.capacity {
            between("capacity", "a factor", (1.0, 1e6), least)?;
            between("capacity", "a factor", (least, 1e6), most)?;
            between("over", "steps", (1.0, 9e15), over as f64)?;
        }
        self.check_fixed()
    }

    /// Uniform routing and the workloads are what they are: nothing moves them.
    fn check_fixed(&self) -> Result<(), TraceError> {
        let fixed = matches!(
            self.popularity,
            Popularity::Uniform | Popularity::Workload(_)
        );
        let exact = self.popularity == Popularity::Uniform;
        let moved = [
            ("drift", self.drift > 0.0),
            ("phase", self.phase > 0),
            ("burst", self.burst > 0),
            ("domains", self.domains.is_some()),
            ("balance", self.balance > 0.0),
            ("capacity", self.capacity.is_some()),
            ("affinity", exact && self.affinity > 0.0),
            ("ragged", exact && self.ragged > 0.0),
        ];
        match moved.iter().find(|(_, moved)| fixed && *moved) {
            Some((field, _)) => Err(TraceError::invalid(
                Place::of("routing").field(*field),
                format!("none: `{}` is fixed", self.popularity),
                "it",
            )),
            None => Ok(()),
        }
    }

    fn check_for(&self, shape: &Shape) -> Result<(), TraceError> {
        shape.check()?;
        self.check()
    }

    /// One layer; `before` is the layer before it, where tokens follow from there.
    fn layer(
        &self,
        shape: &Shape,
        seed: u64,
        step: u64,
        layer: u32,
        before: Option<(&RoutingStep, Option<&Transitions>)>,
    ) -> Result<RoutingStep, TraceError> {
        let exact = matches!(
            self.popularity,
            Popularity::Uniform | Popularity::Workload(Workload::Balanced)
        );
        let follows =
            before.filter(|(_, transitions)| transitions.is_some() || self.affinity > 0.0);
        let counts = match follows {
            None if exact => return RoutingStep::uniform(shape, step, layer),
            None => {
                let sources = self.ragged_sources(shape, self.sources(shape, seed, step, layer));
                fill_rows(shape, &sources, 1, |rank| {
                    stream(seed, "generate", step, layer, rank)
                })
            }
            Some((before, transitions)) => {
                let sources: Vec<Source> = match transitions {
                    Some(transitions) => before
                        .rows()
                        .map(|row| transitions.follow(row, layer, before.top_k()))
                        .collect(),
                    None => self.follow_partners(shape, seed, step, before),
                };
                fill_rows(shape, &sources, 1, |rank| {
                    stream(seed, "generate", step, layer, rank)
                })
            }
        };
        Ok(RoutingStep::from_checked(
            step,
            layer,
            shape.top_k,
            shape.experts,
            counts,
        ))
    }

    /// What the ranks of every domain draw from; one source where ranks are alike.
    fn sources(&self, shape: &Shape, seed: u64, step: u64, layer: u32) -> Vec<Source> {
        if let Popularity::Workload(workload) = self.popularity {
            return vec![workload.source(shape, seed, step, layer)];
        }
        let domains = self.domains.map_or(1, |domains| domains.count as u32);
        (0..domains)
            .map(|domain| {
                let weights = self.weights(shape, seed, step, layer, domain);
                let shares = Shares::new(&fixed_point(&weights), shape.top_k);
                Source(vec![(shares, shape.tokens_per_rank)])
            })
            .collect()
    }

    /// The sources with fewer tokens for some ranks.
    fn ragged_sources(&self, shape: &Shape, sources: Vec<Source>) -> Vec<Source> {
        let ragged = match self.popularity {
            Popularity::Workload(Workload::SourceRagged) if self.ragged == 0.0 => 0.5,
            _ => self.ragged,
        };
        if ragged == 0.0 {
            return sources;
        }
        // So many ranks until domain and number of tokens repeat together.
        let cycle = (1..)
            .map(|times| times * RAGGED)
            .find(|cycle| cycle.is_multiple_of(sources.len()))
            .unwrap_or(RAGGED)
            .min(shape.ranks);
        (0..cycle)
            .map(|rank| {
                let lacks = ragged * (rank % RAGGED) as f64 / (RAGGED - 1) as f64;
                let Source(parts) = &sources[rank % sources.len()];
                let parts = parts.iter().map(|(shares, tokens)| {
                    let kept = libm::round(f64::from(*tokens) * (1.0 - lacks)) as u32;
                    (shares.clone(), kept)
                });
                Source(parts.collect())
            })
            .collect()
    }

    /// What every rank draws from when a part of its tokens follows to partners.
    fn follow_partners(
        &self,
        shape: &Shape,
        seed: u64,
        step: u64,
        before: &RoutingStep,
    ) -> Vec<Source> {
        let layer = before.layer() + 1;
        let mut rng = stream(seed, "partners", 0, layer, 0);
        let mut partners: Vec<usize> = (0..shape.experts).collect();
        for i in (1..shape.experts).rev() {
            partners.swap(i, below(&mut rng, i + 1));
        }
        let sources = self.sources(shape, seed, step, layer);
        let chances: Vec<Vec<f64>> = sources.iter().map(Source::mean_shares).collect();
        let rows = before.rows().enumerate();
        rows.map(|(rank, row)| {
            let copies: u64 = row.iter().map(|&count| u64::from(count)).sum();
            let own = &chances[rank % chances.len()];
            let mut weights: Vec<f64> = own
                .iter()
                .map(|share| (1.0 - self.affinity) * share)
                .collect();
            for (expert, &count) in row.iter().enumerate() {
                let share = f64::from(count) / copies.max(1) as f64;
                weights[partners[expert]] += self.affinity * share;
            }
            let tokens = (copies / u64::from(shape.top_k)) as u32;
            let shares = Shares::new(&fixed_point(&weights), shape.top_k);
            Source(vec![(shares, tokens)])
        })
        .collect()
    }
}

/// Weights as whole numbers, the largest 2^52.
pub(crate) fn fixed_point(weights: &[f64]) -> Vec<u128> {
    let most = weights.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let unit = (1_u64 << 52) as f64;
    weights.iter().map(|w| (w / most * unit) as u128).collect()
}
