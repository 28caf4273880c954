//! Settings of `plan`.

use clap::Args;
use moeplan_sim::spec::{DType, Policy};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

use super::Size;

fn dtype(text: &str) -> Result<DType, String> {
    text.parse()
}

fn policy(text: &str) -> Result<Policy, String> {
    text.parse()
}

/// A time with its unit: `20ms`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Duration {
    /// Seconds.
    pub seconds: f64,
}

/// Units of time, longest name first where one ends another.
const TIME_UNITS: [(&str, f64); 4] = [("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Duration, String> {
        let trimmed = text.trim();
        let parsed = TIME_UNITS.iter().find_map(|(unit, seconds)| {
            let number = trimmed.strip_suffix(unit)?.trim_end();
            Some(number.parse::<f64>().ok()? * seconds)
        });
        parsed
            .filter(|seconds| seconds.is_finite() && *seconds > 0.0 && *seconds < 1e6)
            .map(|seconds| Duration { seconds })
            .ok_or_else(|| format!("expected a time such as 20ms (ns, us, ms, s), found `{text}`"))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.seconds)
    }
}

/// Money, and what for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// An hour of the whole cluster.
    PerHour(f64),
    /// 10^9 tokens.
    PerBillionTokens(f64),
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Budget, String> {
        let parsed = text.trim().split_once('/').and_then(|(amount, per)| {
            let amount: f64 = amount.trim().parse().ok()?;
            let usable = amount.is_finite() && amount > 0.0;
            match per.trim() {
                "hour" | "h" if usable => Some(Budget::PerHour(amount)),
                "1e9-tokens" if usable => Some(Budget::PerBillionTokens(amount)),
                _ => None,
            }
        });
        parsed.ok_or_else(|| {
            format!("expected money such as 100/hour or 2.5/1e9-tokens, found `{text}`")
        })
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::PerHour(amount) => write!(f, "{amount}/hour"),
            Budget::PerBillionTokens(amount) => write!(f, "{amount}/1e9-tokens"),
        }
    }
}

/// Written as text in TOML and JSON, as on the command line.
macro_rules! as_text {
    ($($name:ident),+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )+};
}

as_text!(Duration, Budget);

/// `[plan]`: what is wanted, and what may be chosen.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct PlanSettings {
    /// Longest step wanted, such as 20ms: the cheapest plan that meets it is recommended
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_time: Option<Duration>,
    /// Fewest tokens a second wanted, over all GPUs: the cheapest plan that meets it is recommended
    #[arg(long, value_name = "N", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Most memory a GPU, such as 40GiB [default: what it has]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Most money: 100/hour for the cluster, or 2.5/1e9-tokens; the fastest plan within it is recommended
    #[arg(long, value_name = "MONEY", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Largest share of token copies that may be dropped, 0 to 1
    #[arg(long, value_name = "SHARE", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_dropped: Option<f64>,
    /// Most GPUs: powers of two and three times those are tried, in whole nodes [default: 64]
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "plan-gpus",
        help_heading = "Search"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_gpus: Option<u64>,
    /// Numbers of GPUs that are tried, such as 16,64,96
    #[arg(
        id = "plan-gpus",
        long = "gpus",
        value_name = "N[,N...]",
        value_delimiter = ',',
        help_heading = "Search"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<u64>,
    /// Kinds of cluster that can be had: presets or TOML files [default: nd-a100-v4-80gb]
    #[arg(
        id = "plan-cluster",
        long = "cluster",
        value_name = "PRESET|FILE[,...]",
        value_delimiter = ',',
        help_heading = "Search"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cluster: Vec<String>,
    /// Tokens of a step over all GPUs, which then share them (strong scaling) [default: the layer's
    /// tokens on every GPU, so that more GPUs do more work]
    #[arg(long, value_name = "TOKENS", help_heading = "Search")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_batch: Option<u64>,
    /// Capacity settings to choose from [default: the layer's]
    #[arg(
        long,
        value_name = "X[,X...]",
        value_delimiter = ',',
        allow_negative_numbers = true,
        help_heading = "Search"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub try_capacity_factor: Vec<f64>,
    /// k to choose from, where the model leaves it open [default: the layer's]
    #[arg(
        long,
        value_name = "K[,K...]",
        value_delimiter = ',',
        help_heading = "Search"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub try_top_k: Vec<u32>,
    /// Number types to choose from [default: the layer's]
    #[arg(long, value_name = "TYPE[,TYPE...]", value_delimiter = ',', value_parser = dtype, help_heading = "Search")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub try_dtype: Vec<DType>,
    /// GPUs of a node that share a model's weights, to choose from [default: the model's --tensor-parallel, 1]
    #[arg(
        long,
        value_name = "N[,N...]",
        value_delimiter = ',',
        help_heading = "Search"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub try_tensor_parallel: Vec<u64>,
    /// Parts of a GPU's batch that run one after the other, to choose from [default: the model's --micro-batches, 1]
    #[arg(
        long,
        value_name = "N[,N...]",
        value_delimiter = ',',
        help_heading = "Search"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub try_micro_batches: Vec<u64>,
    /// Who may decide from step to step: static, dictionary, oracle [default: static, and dictionary
    /// where there are several steps]
    #[arg(long, value_name = "POLICY[,POLICY...]", value_delimiter = ',', value_parser = policy, help_heading = "Search")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub try_policy: Vec<Policy>,
    /// Also try dropless plans, which pad nothing
    #[arg(long, help_heading = "Search")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub try_dropless: bool,
    /// Who may move and copy experts from step to step, in dropless plans: eplb, eplb-hierarchical, shadowing,
    /// affinity (`moeplan balance`; when they decide, `[balance]` of a study file says) [default: nobody]
    #[arg(
        long,
        value_name = "POLICY[,POLICY...]",
        value_delimiter = ',',
        help_heading = "Search"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub try_balance: Vec<String>,
    /// Try everything, whatever the bounds say
    #[arg(long, hide_short_help = true, help_heading = "Search")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub exhaustive: bool,
}

impl PlanSettings {
    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn over(&self, file: &PlanSettings) -> PlanSettings {
        fn list<T: Clone>(flags: &[T], file: &[T]) -> Vec<T> {
            if flags.is_empty() { file } else { flags }.to_vec()
        }
        // A flag on the size of the cluster drops what the file says of it.
        let sized = self.max_gpus.is_some() || !self.gpus.is_empty();
        PlanSettings {
            step_time: self.step_time.or(file.step_time),
            tokens_per_second: self.tokens_per_second.or(file.tokens_per_second),
            memory: self.memory.or(file.memory),
            budget: self.budget.or(file.budget),
            max_dropped: self.max_dropped.or(file.max_dropped),
            max_gpus: self.max_gpus.or(file.max_gpus.filter(|_| !sized)),
            gpus: if sized {
                self.gpus.clone()
            } else {
                file.gpus.clone()
            },
            cluster: list(&self.cluster, &file.cluster),
            global_batch: self.global_batch.or(file.global_batch),
            try_capacity_factor: list(&self.try_capacity_factor, &file.try_capacity_factor),
            try_top_k: list(&self.try_top_k, &file.try_top_k),
            try_dtype: list(&self.try_dtype, &file.try_dtype),
            try_tensor_parallel: list(&self.try_tensor_parallel, &file.try_tensor_parallel),
            try_micro_batches: list(&self.try_micro_batches, &file.try_micro_batches),
            try_policy: list(&self.try_policy, &file.try_policy),
            try_dropless: self.try_dropless || file.try_dropless,
            try_balance: list(&self.try_balance, &file.try_balance),
            exhaustive: self.exhaustive || file.exhaustive,
        }
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == PlanSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_money_need_their_units() {
        let seconds = |text: &str| text.parse::<Duration>().map(|time| time.seconds);
        assert_eq!(seconds("20ms"), Ok(0.02));
        assert_eq!(seconds("1.5 s"), Ok(1.5));
        for bad in ["20", "ms", "-1s", "1h", "nans"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
        assert_eq!("100/hour".parse(), Ok(Budget::PerHour(100.0)));
        assert_eq!("2.5/1e9-tokens".parse(), Ok(Budget::PerBillionTokens(2.5)));
        for bad in ["100", "0/hour", "-1/hour", "1/day"] {
            assert!(bad.parse::<Budget>().is_err(), "{bad}");
        }
    }
}
