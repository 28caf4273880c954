//! Settings of cost and energy.

use clap::Args;
use moeplan_sim::economy::PriceKind;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

fn price(text: &str) -> Result<PriceKind, String> {
    text.parse()
}

/// `[economy]`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct EconomySettings {
    /// What GPUs cost and draw, as TOML [default: list prices, each with its source and date]
    #[arg(long, value_name = "FILE", help_heading = "Cost")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_list: Option<PathBuf>,
    /// How GPUs are paid for: on-demand, reserved-1y or reserved-3y [default: on-demand]
    #[arg(long, value_name = "KIND", value_parser = price, help_heading = "Cost")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price: Option<PriceKind>,
}

impl EconomySettings {
    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn over(&self, file: &EconomySettings) -> EconomySettings {
        EconomySettings {
            price_list: self.price_list.clone().or_else(|| file.price_list.clone()),
            price: self.price.or(file.price),
        }
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == EconomySettings::default()
    }
}
