//! What a step costs: money by the GPU hour, and energy by what a GPU does.

use crate::simulate::Step;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The price list in force when nothing is said.
const BUILT_IN: &str = include_str!("lists/default.toml");
/// The table of clusters that have none of their own.
const GENERIC: &str = "generic";
/// Tokens a cost is told for.
const BILLION: f64 = 1e9;

/// How GPUs are paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PriceKind {
    /// By the hour, no commitment.
    #[default]
    OnDemand,
    /// Committed for a year.
    #[serde(rename = "reserved-1y")]
    Reserved1y,
    /// Committed for three years.
    #[serde(rename = "reserved-3y")]
    Reserved3y,
}

impl PriceKind {
    /// All of them.
    pub const ALL: [PriceKind; 3] = [
        PriceKind::OnDemand,
        PriceKind::Reserved1y,
        PriceKind::Reserved3y,
    ];

    /// The name on the command line and in files.
    pub const fn name(self) -> &'static str {
        match self {
            PriceKind::OnDemand => "on-demand",
            PriceKind::Reserved1y => "reserved-1y",
            PriceKind::Reserved3y => "reserved-3y",
        }
    }
}

impl fmt::Display for PriceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for PriceKind {
    type Err = String;

    fn from_str(text: &str) -> Result<PriceKind, String> {
        PriceKind::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| {
                let names = PriceKind::ALL.map(PriceKind::name).join(", ");
                format!("expected {names}, found `{text}`")
            })
    }
}

/// What one GPU costs an hour, and who says so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Price {
    /// Money an hour, in the list's currency.
    pub per_gpu_hour: f64,
    /// Where the number comes from.
    pub source: String,
    /// When it was read.
    pub date: String,
}

/// What one GPU draws, and who says so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Power {
    /// Watts.
    pub watts: f64,
    /// Where the number comes from.
    pub source: String,
    /// When it was read.
    pub date: String,
}

/// What one GPU and its share of the node draw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PowerModel {
    /// Nothing runs.
    pub idle: Power,
    /// A matrix product runs.
    pub gemm: Power,
    /// A memory-bound kernel runs.
    pub memory_bound: Power,
    /// Communication runs, and nothing computes.
    pub communication: Power,
    /// Host, NICs and fans, whatever runs.
    pub rest_of_node: Power,
}

/// Prices by kind.
pub type Tariff = BTreeMap<PriceKind, Price>;

/// A price list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PriceList {
    /// Its name.
    pub name: String,
    /// Of all prices in it.
    pub currency: String,
    /// By the name of a cluster, and `generic` for all others.
    pub clusters: BTreeMap<String, Tariff>,
    /// What a GPU draws; the built-in numbers where a list says none.
    #[serde(default = "built_in_power")]
    pub power: PowerModel,
}

/// A price list that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {message}")]
pub struct PriceListError {
    /// The field.
    pub field: String,
    /// What was expected and found.
    pub message: String,
}

fn built_in_power() -> PowerModel {
    PriceList::default().power
}

impl Default for PriceList {
    /// The built-in list.
    fn default() -> Self {
        toml::from_str(BUILT_IN).expect("the built-in price list is tested")
    }
}

impl PriceList {
    /// Checks that all numbers are.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), PriceListError> {
        let fail = |field: String, expected: &str, found: f64| PriceListError {
            field,
            message: format!("expected {expected}, found {found}"),
        };
        for (cluster, tariff) in &self.clusters {
            for (kind, price) in tariff {
                let money = price.per_gpu_hour;
                if !(money.is_finite() && (0.0..=1e6).contains(&money)) {
                    let field = format!("clusters.{cluster}.{kind}.per-gpu-hour");
                    return Err(fail(field, "0 to 1e6", money));
                }
            }
        }
        for (name, power) in [
            ("idle", &self.power.idle),
            ("gemm", &self.power.gemm),
            ("memory-bound", &self.power.memory_bound),
            ("communication", &self.power.communication),
            ("rest-of-node", &self.power.rest_of_node),
        ] {
            if !(power.watts.is_finite() && (0.0..=1e5).contains(&power.watts)) {
                return Err(fail(format!("power.{name}.watts"), "0 to 1e5", power.watts));
            }
        }
        Ok(())
    }

    /// The price of `cluster`, or of any where the list has no such cluster.
    ///
    /// # Errors
    /// A list without such a price.
    pub fn price(&self, cluster: &str, kind: PriceKind) -> Result<&Price, PriceListError> {
        let named = self.clusters.get(cluster).map(|tariff| (cluster, tariff));
        let generic = || self.clusters.get(GENERIC).map(|tariff| (GENERIC, tariff));
        let (name, tariff) = named.or_else(generic).ok_or_else(|| PriceListError {
            field: "clusters".into(),
            message: format!("expected `{cluster}` or `{GENERIC}`, found neither"),
        })?;
        tariff.get(&kind).ok_or_else(|| PriceListError {
            field: format!("clusters.{name}"),
            message: format!("expected a price `{kind}`, found none"),
        })
    }
}

/// Where the time of a step goes that decides its energy.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Activity {
    /// Seconds of the step.
    pub step: f64,
    /// Seconds in which matrix products ran.
    pub gemm: f64,
    /// Seconds in which memory-bound kernels ran.
    pub memory_bound: f64,
    /// Seconds in which communication ran and nothing computed.
    pub communication: f64,
}

impl Activity {
    /// What the slowest rank did in `step`; it stands for all.
    pub fn of(step: &Step) -> Activity {
        let gemm = step.matrix_products.as_secs_f64();
        Activity {
            step: step.time.as_secs_f64(),
            gemm,
            memory_bound: step.compute.as_secs_f64() - gemm,
            communication: step.exposed_communication.as_secs_f64(),
        }
    }

    /// The mean of several.
    pub fn mean<'a>(steps: impl Iterator<Item = &'a Step>) -> Activity {
        let mut total = Activity::default();
        let mut count = 0.0f64;
        for activity in steps.map(Activity::of) {
            total.step += activity.step;
            total.gemm += activity.gemm;
            total.memory_bound += activity.memory_bound;
            total.communication += activity.communication;
            count += 1.0;
        }
        let count = count.max(1.0);
        Activity {
            step: total.step / count,
            gemm: total.gemm / count,
            memory_bound: total.memory_bound / count,
            communication: total.communication / count,
        }
    }
}

impl PowerModel {
    /// Joules one GPU with its share of the node draws in a step. What nothing is said to run in is
    /// idle; where compute and communication overlap the kernel decides.
    pub fn joules(&self, activity: &Activity) -> f64 {
        let busy = activity.gemm + activity.memory_bound + activity.communication;
        let idle = (activity.step - busy).max(0.0);
        activity.gemm * self.gemm.watts
            + activity.memory_bound * self.memory_bound.watts
            + activity.communication * self.communication.watts
            + idle * self.idle.watts
            + activity.step * self.rest_of_node.watts
    }
}

/// What running a layer costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Tokens that pass the layer a second, over all GPUs.
    pub tokens_per_second: f64,
    /// Money an hour, over all GPUs.
    pub cost_per_hour: f64,
    /// Money for 10^9 tokens.
    pub cost_per_billion_tokens: f64,
    /// Joules a token.
    pub joules_per_token: f64,
}

impl Cost {
    /// The cost of steps like `activity` in which `gpus` GPUs pass `tokens` tokens each.
    pub fn new(
        gpus: u64,
        tokens: u64,
        activity: &Activity,
        per_gpu_hour: f64,
        power: &PowerModel,
    ) -> Cost {
        let tokens_per_second = (gpus * tokens) as f64 / activity.step;
        let cost_per_hour = gpus as f64 * per_gpu_hour;
        Cost {
            tokens_per_second,
            cost_per_hour,
            cost_per_billion_tokens: cost_per_hour / 3600.0 / tokens_per_second * BILLION,
            joules_per_token: power.joules(activity) / tokens as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_list_prices_every_preset_in_every_way() {
        let list = PriceList::default();
        list.check().unwrap();
        for (preset, _) in crate::hardware::PRESETS {
            for kind in PriceKind::ALL {
                let price = list.price(preset, kind).unwrap();
                assert!(price.per_gpu_hour > 0.0, "{preset} {kind}");
                assert!(!price.source.is_empty() && !price.date.is_empty());
            }
        }
    }

    #[test]
    fn a_step_of_a_second_on_eight_gpus_at_two_an_hour() {
        let activity = Activity {
            step: 1.0,
            gemm: 0.5,
            memory_bound: 0.1,
            communication: 0.2,
        };
        let power = built_in_power();
        let cost = Cost::new(8, 1_000, &activity, 2.0, &power);
        assert_eq!(cost.tokens_per_second, 8_000.0);
        assert_eq!(cost.cost_per_hour, 16.0);
        // 16 an hour, 28.8 million tokens an hour.
        assert!((cost.cost_per_billion_tokens - 16.0 / 0.0288).abs() < 1e-9);
        let joules = 0.5 * 400.0 + 0.1 * 300.0 + 0.2 * 200.0 + 0.2 * 53.0 + 412.0;
        assert!((cost.joules_per_token - joules / 1_000.0).abs() < 1e-12);
    }

    #[test]
    fn a_list_without_the_price_says_which() {
        let mut list = PriceList::default();
        list.clusters.retain(|name, _| name != GENERIC);
        let error = list.price("ours", PriceKind::OnDemand).unwrap_err();
        assert!(error.to_string().contains("`ours`"), "{error}");
    }
}
