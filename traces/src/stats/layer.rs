//! One layer over all its steps.

use serde::Serialize;

use super::changes::{ChangePoint, change_points};
use super::step::StepStats;

/// Steps over which the moving average forecasts.
pub(crate) const WINDOW: usize = 8;

/// A number over the steps of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Range {
    /// Of the first step.
    pub first: f64,
    /// Least.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Most.
    pub max: f64,
    /// Of the last step.
    pub last: f64,
}

impl Range {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.collect();
        Self {
            first: values.first().copied().unwrap_or(0.0),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            mean: mean(&values),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            last: values.last().copied().unwrap_or(0.0),
        }
    }
}

/// How like themselves loads are some steps later.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Autocorrelation {
    /// Recorded steps between.
    pub lag: usize,
    /// Autocorrelation, -1 to 1; nothing when loads never move or there are too few steps.
    pub value: Option<f64>,
}

/// How well the shares of the next recorded step can be foreseen: mean total variation distance
/// between forecast and what came, from the second step on. That is the share of copies forecast
/// for the wrong expert.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Forecast {
    /// The shares of the step before.
    pub last_value: f64,
    /// The mean shares of up to 8 steps before.
    pub moving_average: f64,
    /// The mean shares of all steps, which only hindsight knows: what a fixed plan could do at
    /// best.
    pub mean: f64,
    /// `1 - last_value / mean`: above 0, the last step tells more than the mean.
    pub last_value_skill: Option<f64>,
    /// `1 - moving_average / mean`.
    pub moving_average_skill: Option<f64>,
}

/// One layer over its steps. Shares are loads over the copies of their step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerStats {
    /// Index of the MoE layer.
    pub layer: u32,
    /// Recorded steps.
    pub steps: usize,
    /// Copies of all steps.
    pub copies: u64,
    /// Needed capacity factor, see [`crate::RoutingStep::needed_capacity_factor`].
    pub needed_capacity_factor: Range,
    /// Load of the busiest expert over the mean, step by step.
    pub max_over_mean: Range,
    /// The same of the loads of all steps together.
    pub max_over_mean_of_sum: f64,
    /// See [`StepStats::coefficient_of_variation`].
    pub coefficient_of_variation: Range,
    /// See [`StepStats::gini`].
    pub gini: Range,
    /// See [`StepStats::entropy_bits`].
    pub entropy_bits: Range,
    /// See [`StepStats::top_share`].
    pub top_share: Range,
    /// See [`StepStats::top_tenth_share`].
    pub top_tenth_share: Range,
    /// See [`StepStats::source_divergence`].
    pub source_divergence: Range,
    /// Copies dropped over all copies, one for each capacity factor asked for.
    pub dropped: Vec<f64>,
    /// `sum_{s,e} (p_{s,e} - m_e)(p_{s+lag,e} - m_e) / sum_{s,e} (p_{s,e} - m_e)^2` of shares `p`
    /// around each expert's mean `m` over the steps.
    pub autocorrelation: Vec<Autocorrelation>,
    /// How well the next step is foreseen; nothing for a single step.
    pub forecast: Option<Forecast>,
    /// How loads move together with those of the layer before: the RV coefficient (Escoufier 1973)
    /// of the shares around their means, 0 to 1; 1 when the one determines the other up to rotation
    /// and scale. Nothing for the first layer, or when a layer never moves. Noise alone gives about
    /// `experts / steps`: compare with a trace of the same size.
    pub coupling_to_previous: Option<f64>,
    /// Where the mean loads change, in time order.
    pub change_points: Vec<ChangePoint>,
    /// Mean shares of the experts over the steps.
    pub mean_shares: Vec<f64>,
    /// Every step.
    #[serde(skip)]
    pub per_step: Vec<StepStats>,
    /// Shares of every step, `[steps, experts]`.
    #[serde(skip)]
    pub shares: Vec<Vec<f64>>,
}

/// The steps of a layer so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Series {
    steps: Vec<StepStats>,
    shares: Vec<Vec<f64>>,
    sum: Vec<u64>,
}

impl Series {
    pub(super) fn push(&mut self, stats: StepStats, loads: Vec<u64>) {
        let copies = stats.copies.max(1) as f64;
        self.sum.resize(loads.len().max(self.sum.len()), 0);
        for (sum, &load) in self.sum.iter_mut().zip(&loads) {
            *sum += load;
        }
        let shares = loads.iter().map(|&load| load as f64 / copies);
        self.shares.push(shares.collect());
        self.steps.push(stats);
    }
}

impl LayerStats {
    pub(super) fn new(layer: u32, series: Series, lags: &[usize]) -> Self {
        let Series { steps, shares, sum } = series;
        let range = |of: &dyn Fn(&StepStats) -> f64| Range::of(steps.iter().map(of));
        let copies: u64 = sum.iter().sum();
        let most = sum.iter().copied().max().unwrap_or(0);
        let factors = steps.first().map_or(0, |step| step.dropped.len());
        let dropped = (0..factors).map(|i| {
            let lost: f64 = steps.iter().map(|s| s.dropped[i] * s.copies as f64).sum();
            lost / copies.max(1) as f64
        });
        let mean_shares = mean_of_rows(&shares);
        Self {
            layer,
            steps: steps.len(),
            copies,
            needed_capacity_factor: range(&|s| s.needed_capacity_factor),
            max_over_mean: range(&|s| s.max_over_mean),
            max_over_mean_of_sum: most as f64 * sum.len() as f64 / copies.max(1) as f64,
            coefficient_of_variation: range(&|s| s.coefficient_of_variation),
            gini: range(&|s| s.gini),
            entropy_bits: range(&|s| s.entropy_bits),
            top_share: range(&|s| s.top_share),
            top_tenth_share: range(&|s| s.top_tenth_share),
            source_divergence: range(&|s| s.source_divergence),
            dropped: dropped.collect(),
            autocorrelation: autocorrelations(&shares, &mean_shares, lags),
            forecast: forecast(&shares, &mean_shares),
            coupling_to_previous: None,
            change_points: change_points(&steps, &shares),
            mean_shares,
            per_step: steps,
            shares,
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The mean of rows of one length.
pub(super) fn mean_of_rows(rows: &[Vec<f64>]) -> Vec<f64> {
    let mut mean = vec![0.0; rows.first().map_or(0, Vec::len)];
    for row in rows {
        for (mean, value) in mean.iter_mut().zip(row) {
            *mean += value;
        }
    }
    let count = rows.len().max(1) as f64;
    mean.iter_mut().for_each(|value| *value /= count);
    mean
}

fn autocorrelations(shares: &[Vec<f64>], mean: &[f64], lags: &[usize]) -> Vec<Autocorrelation> {
    let product = |a: &[f64], b: &[f64]| -> f64 {
        let pairs = a.iter().zip(b).zip(mean);
        pairs.map(|((a, b), m)| (a - m) * (b - m)).sum()
    };
    let all: f64 = shares.iter().map(|row| product(row, row)).sum();
    let at = |lag: usize| {
        let later = shares.get(lag..).filter(|later| !later.is_empty())?;
        // Rounding leaves about 1e-32 where nothing moves.
        let moves = all > 1e-24 && lag > 0;
        let together: f64 = shares.iter().zip(later).map(|(a, b)| product(a, b)).sum();
        moves.then_some(together / all)
    };
    let value = |&lag: &usize| Autocorrelation {
        lag,
        value: at(lag),
    };
    lags.iter().map(value).collect()
}

/// Steps that [`coupling`] looks at, spread over the run: it takes their square in time.
const COUPLED_STEPS: usize = 256;

/// The RV coefficient of two layers, from the products of their steps among each other.
pub(super) fn coupling(a: &LayerStats, b: &LayerStats) -> Option<f64> {
    let steps = a.shares.len();
    if steps != b.shares.len() || steps < 2 {
        return None;
    }
    let stride = steps.div_ceil(COUPLED_STEPS);
    let products = |of: &LayerStats| -> Vec<f64> {
        let chosen: Vec<Vec<f64>> = of.shares.iter().step_by(stride).cloned().collect();
        let mean = mean_of_rows(&chosen);
        let centred: Vec<Vec<f64>> = chosen
            .iter()
            .map(|row| row.iter().zip(&mean).map(|(p, m)| p - m).collect())
            .collect();
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let pairs = centred
            .iter()
            .flat_map(|x| centred.iter().map(move |y| (x, y)));
        pairs.map(|(x, y)| dot(x, y)).collect()
    };
    let (x, y) = (products(a), products(b));
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let scale = libm::sqrt(dot(&x, &x) * dot(&y, &y));
    (scale > 1e-40).then(|| dot(&x, &y) / scale)
}

fn forecast(shares: &[Vec<f64>], mean: &[f64]) -> Option<Forecast> {
    let apart = super::distance::total_variation;
    let steps = 1..shares.len();
    if steps.is_empty() {
        return None;
    }
    let count = steps.len() as f64;
    let (mut last, mut average, mut fixed) = (0.0, 0.0, 0.0);
    for step in steps {
        let window = &shares[step.saturating_sub(WINDOW)..step];
        last += apart(&shares[step], &shares[step - 1]);
        average += apart(&shares[step], &mean_of_rows(window));
        fixed += apart(&shares[step], mean);
    }
    let skill = |error: f64| (fixed > 1e-12).then(|| 1.0 - error / fixed);
    Some(Forecast {
        last_value: last / count,
        moving_average: average / count,
        mean: fixed / count,
        last_value_skill: skill(last),
        moving_average_skill: skill(average),
    })
}
