//! Settings of what runs on this machine, and of what it is held against.

use super::dtype;
use crate::validate::tables::TableKind;
use clap::Args;
use moeplan_sim::spec::DType;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// What runs the ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendKind {
    /// Threads.
    #[default]
    Cpu,
    /// GPUs.
    Cuda,
}

/// `[execute]`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ExecuteSettings {
    /// What runs the ranks [default: cpu]
    #[arg(long, value_name = "BACKEND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendKind>,
    /// Ranks on this machine, all of which run the layer together [default: 4]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<u64>,
    /// Times every step is run; the median is shown [default: 5]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeats: Option<usize>,
    /// GPUs of this machine, each with a block of the ranks; several are joined by NCCL [default: 1]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<NonZeroUsize>,
    /// On a GPU: ranks one after the other, so that each operation is timed alone
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ranks_apart: bool,
}

impl ExecuteSettings {
    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn over(&self, file: &ExecuteSettings) -> ExecuteSettings {
        ExecuteSettings {
            backend: self.backend.or(file.backend),
            ranks: self.ranks.or(file.ranks),
            repeats: self.repeats.or(file.repeats),
            devices: self.devices.or(file.devices),
            ranks_apart: self.ranks_apart || file.ranks_apart,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == ExecuteSettings::default()
    }
}

/// `[gate]`: what a gate does beside scoring, none of which costs the simulator any time.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct GateSettings {
    /// Normal noise on the gate's logits, SCALE / E wide, as in training [default: none]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate_noise: Option<f32>,
    /// Tokens get slots in order of their best score (batch-prioritized routing), not as they come
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub batch_prioritized: bool,
    /// Weight of the balancing loss in the backward pass [default: 0.01]
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance_weight: Option<f32>,
}

impl GateSettings {
    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn over(&self, file: &GateSettings) -> GateSettings {
        GateSettings {
            gate_noise: self.gate_noise.or(file.gate_noise),
            batch_prioritized: self.batch_prioritized || file.batch_prioritized,
            balance_weight: self.balance_weight.or(file.balance_weight),
        }
    }
}

/// `[calibrate]`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct CalibrateSettings {
    /// What runs the ranks [default: cpu]
    #[arg(long, value_name = "BACKEND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendKind>,
    /// Rounds of all measurements; the medians are kept [default: 7]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeats: Option<usize>,
}

impl CalibrateSettings {
    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn over(&self, file: &CalibrateSettings) -> CalibrateSettings {
        CalibrateSettings {
            backend: self.backend.or(file.backend),
            repeats: self.repeats.or(file.repeats),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == CalibrateSettings::default()
    }
}

/// `[validate]`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ValidateSettings {
    /// Held-out steps of the shipped trace [default: 5]
    #[arg(long, value_name = "N", requires = "what", help_heading = "Executor")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// T of the layers that are run [default: 256 and 320; cuda: 2048]
    #[arg(long, value_name = "T", requires = "what", help_heading = "Executor")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_step: Option<u64>,
    /// D of the layers that are run [default: 448 and 320; cuda: 1024]
    #[arg(long, value_name = "D", requires = "what", help_heading = "Executor")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_dim: Option<u64>,
    /// H of the layers that are run [default: 640 and 448; cuda: 1024]
    #[arg(long, value_name = "H", requires = "what", help_heading = "Executor")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_dim: Option<u64>,
    /// Number type of the layers that are run [default: fp32; cuda: bf16]
    #[arg(long, value_name = "TYPE", value_parser = dtype, requires = "what", help_heading = "Executor")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DType>,
    /// Hold the cost models against a measured table instead, row by row
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<PathBuf>,
    /// What the table measures, and so its columns
    #[arg(long, value_name = "KIND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<TableKind>,
    /// Also hold the models against the tables in DIR/calibration
    #[arg(long, value_name = "DIR", conflicts_with = "table")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Write the report, as docs/VALIDATION.md
    #[arg(long, value_name = "FILE", conflicts_with = "table")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub markdown: Option<PathBuf>,
    /// Write the errors, for later runs to be held against
    #[arg(long, value_name = "FILE", conflicts_with = "table")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<PathBuf>,
}

impl ValidateSettings {
    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn over(&self, file: &ValidateSettings) -> ValidateSettings {
        let path = |flag: &Option<PathBuf>, file: &Option<PathBuf>| flag.clone().or(file.clone());
        ValidateSettings {
            steps: self.steps.or(file.steps),
            tokens_per_step: self.tokens_per_step.or(file.tokens_per_step),
            model_dim: self.model_dim.or(file.model_dim),
            hidden_dim: self.hidden_dim.or(file.hidden_dim),
            dtype: self.dtype.or(file.dtype),
            table: path(&self.table, &file.table),
            kind: self.kind.or(file.kind),
            data: path(&self.data, &file.data),
            markdown: path(&self.markdown, &file.markdown),
            record: path(&self.record, &file.record),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == ValidateSettings::default()
    }
}
