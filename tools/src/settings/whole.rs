//! Settings of whole models, of balancing and of the real world.

use clap::Args;
use moeplan_sim::model::MemorySaving;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[model]`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ModelSettings {
    /// The model: a preset, or a config.json of Hugging Face
    #[arg(value_name = "PRESET|config.json", conflicts_with = "model-file")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// The same, for a config.json
    #[arg(id = "model-file", long = "model", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Images or sequences of a GPU and step [default: the preset's; 1 sequence]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// Tokens of a sequence [default: 4096]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence_length: Option<u64>,
    /// Experts of every MoE layer [default: the model's]
    #[arg(long, value_name = "E")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_experts: Option<u64>,
    /// Experts per token [default: the model's]
    #[arg(long, value_name = "K")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Capacity: above 0 fixed, 0 the least that drops no token, below 0 as 0 but at most -X [default: the model's]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_factor: Option<f64>,
    /// Keep 1/W of the optimizer's states of what all GPUs hold (ZeRO-1)
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shard_states: bool,
    /// Keep 1/W of their gradients besides (ZeRO-2)
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shard_gradients: bool,
    /// Keep only what enters each transformer block, and run its forward pass again in the backward one
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recompute: bool,
    /// Equal parts of a GPU's batch that run one after the other, their gradients added up for one update [default: 1]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batches: Option<u64>,
    /// GPUs of a node that share the weights of attention, dense layers and the vocabulary (Megatron-LM, with sequence
    /// parallelism) [default: 1]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_parallel: Option<u64>,
}

/// `[balance]`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct BalanceSettings {
    /// static, eplb, eplb-hierarchical, shadowing or affinity; give it several times [default: all]
    #[arg(long = "balance", value_name = "POLICY")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub balance: Vec<String>,
    /// Steps between decisions [default: 4]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// Also decide when a step's loads are this far from those last decided on, 0 to 1 (total variation)
    #[arg(long, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<f64>,
    /// Slots of a GPU for copies of experts [default: 1]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra_slots: Option<usize>,
    /// Groups of experts that eplb-hierarchical packs onto nodes [default: one a node]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_groups: Option<usize>,
}

/// `[world]`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct WorldSettings {
    /// Chance that a GPU is slow in a step [default: 0]
    #[arg(long, value_name = "P")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_gpu: Option<f64>,
    /// How many times longer its kernels take [default: 1.5]
    #[arg(long, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_gpu_factor: Option<f64>,
    /// Chance that a NIC is degraded in a step [default: 0]
    #[arg(long, value_name = "P")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded_nic: Option<f64>,
    /// How many times longer its exchanges take [default: 2]
    #[arg(long, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded_nic_factor: Option<f64>,
    /// Chance that a NIC's link goes down during a step [default: 0]
    #[arg(long, value_name = "P")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flapping_nic: Option<f64>,
    /// Mean time it is down, milliseconds [default: 1000]
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flap_ms: Option<f64>,
    /// Mean share of every NIC's rate that others take, 0 to below 0.5 [default: 0]
    #[arg(long, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background: Option<f64>,
    /// Bandwidth of a leaf's NICs over its uplinks' [default: as the cluster has it]
    #[arg(long, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oversubscription: Option<f64>,
    /// Draws of a step, and simulated runs [default: 1000]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draws: Option<usize>,
    /// Mean time between failures of a node, hours [default: 6334, Llama 3's 419 failures in 54 days on 2,048 nodes]
    #[arg(long, value_name = "H")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_mtbf_hours: Option<f64>,
    /// Time to write a checkpoint, seconds [default: 60]
    #[arg(long, value_name = "S")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_s: Option<f64>,
    /// Time from a failure to running again, seconds [default: 600]
    #[arg(long, value_name = "S")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_s: Option<f64>,
    /// Work between checkpoints, seconds [default: Daly's optimum]
    #[arg(long, value_name = "S")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_s: Option<f64>,
    /// How long the job runs [default: 30]
    #[arg(long, value_name = "DAYS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<f64>,
}

impl ModelSettings {
    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn over(&self, file: &ModelSettings) -> ModelSettings {
        let named = self.preset.is_some() || self.file.is_some();
        let source = if named { self } else { file };
        ModelSettings {
            preset: source.preset.clone(),
            file: source.file.clone(),
            batch: self.batch.or(file.batch),
            sequence_length: self.sequence_length.or(file.sequence_length),
            num_experts: self.num_experts.or(file.num_experts),
            top_k: self.top_k.or(file.top_k),
            capacity_factor: self.capacity_factor.or(file.capacity_factor),
            shard_states: self.shard_states || file.shard_states,
            shard_gradients: self.shard_gradients || file.shard_gradients,
            recompute: self.recompute || file.recompute,
            micro_batches: self.micro_batches.or(file.micro_batches),
            tensor_parallel: self.tensor_parallel.or(file.tensor_parallel),
        }
    }

    /// What is done to need less memory.
    pub fn saving(&self) -> MemorySaving {
        MemorySaving {
            shard_states: self.shard_states,
            shard_gradients: self.shard_gradients,
            recompute: self.recompute,
            micro_batches: self.micro_batches.unwrap_or(1),
        }
    }
}

impl BalanceSettings {
    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn over(&self, file: &BalanceSettings) -> BalanceSettings {
        BalanceSettings {
            balance: match self.balance.is_empty() {
                true => file.balance.clone(),
                false => self.balance.clone(),
            },
            every: self.every.or(file.every),
            drift: self.drift.or(file.drift),
            extra_slots: self.extra_slots.or(file.extra_slots),
            expert_groups: self.expert_groups.or(file.expert_groups),
        }
    }
}

impl WorldSettings {
    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn over(&self, file: &WorldSettings) -> WorldSettings {
        WorldSettings {
            slow_gpu: self.slow_gpu.or(file.slow_gpu),
            slow_gpu_factor: self.slow_gpu_factor.or(file.slow_gpu_factor),
            degraded_nic: self.degraded_nic.or(file.degraded_nic),
            degraded_nic_factor: self.degraded_nic_factor.or(file.degraded_nic_factor),
            flapping_nic: self.flapping_nic.or(file.flapping_nic),
            flap_ms: self.flap_ms.or(file.flap_ms),
            background: self.background.or(file.background),
            oversubscription: self.oversubscription.or(file.oversubscription),
            draws: self.draws.or(file.draws),
            node_mtbf_hours: self.node_mtbf_hours.or(file.node_mtbf_hours),
            checkpoint_s: self.checkpoint_s.or(file.checkpoint_s),
            restart_s: self.restart_s.or(file.restart_s),
            interval_s: self.interval_s.or(file.interval_s),
            days: self.days.or(file.days),
        }
    }
}
