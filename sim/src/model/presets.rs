//! Models known by name, and what was published about them.

use super::swin::Swin;
use super::{ConfigError, ModelSpec, from_config};

/// Names of the built-in models.
pub const PRESETS: &[&str] = &[
    "swinv2-moe-s",
    "swinv2-moe-b",
    "mixtral-8x7b",
    "olmoe-1b-7b",
    "gpt-oss-20b",
    "qwen3-235b-a22b",
    "deepseek-v3",
];

/// What was published about a preset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Published {
    /// Parameters.
    pub parameters: f64,
    /// Parameters a token uses.
    pub active_parameters: f64,
    /// Where that stands.
    pub source: &'static str,
    /// Accuracies, which no simulation can tell: what, dense, MoE.
    pub accuracy: &'static [(&'static str, f64, f64)],
}

/// Accuracies of SwinV2-B (Tutel, Table 8).
const SWIN_B: &[(&str, f64, f64)] = &[
    ("ImageNet-22K top-1", 37.2, 38.5),
    ("ImageNet-1K fine-tuned top-1", 85.1, 85.5),
    ("ImageNet-1K 5-shot top-1", 75.9, 77.9),
    ("COCO box AP, MoE layers frozen", 53.0, 53.4),
    ("COCO mask AP, MoE layers frozen", 45.8, 46.2),
];

/// The published figures of preset `name`.
pub fn published(name: &str) -> Option<Published> {
    let (parameters, active_parameters, source, accuracy): (f64, f64, _, _) = match name {
        "swinv2-moe-s" => (541.8e6, 65.8e6, "Tutel, Table 11", &[][..]),
        "swinv2-moe-b" => (955.3e6, 109.3e6, "Tutel, Tables 8, 11", SWIN_B),
        "mixtral-8x7b" => (46.7e9, 12.9e9, "arXiv 2401.04088", &[]),
        "olmoe-1b-7b" => (6.9e9, 1.3e9, "arXiv 2409.02060", &[]),
        "gpt-oss-20b" => (
            20.9e9,
            3.6e9,
            "arXiv 2508.10925 (active without the embedding table)",
            &[],
        ),
        "qwen3-235b-a22b" => (235e9, 22e9, "arXiv 2505.09388", &[]),
        "deepseek-v3" => (671e9, 37e9, "arXiv 2412.19437", &[]),
        _ => return None,
    };
    Some(Published {
        parameters,
        active_parameters,
        source,
        accuracy,
    })
}

/// The preset `name`; language models on sequences of `tokens`. `None` where no preset has that name.
///
/// # Errors
/// A sequence length out of range.
pub fn preset(name: &str, tokens: u64) -> Option<Result<ModelSpec, ConfigError>> {
    let (config, repository) = match name {
        "swinv2-moe-s" => {
            return Some(Ok(swin("swinv2-moe-s", 96, 32)));
        }
        "swinv2-moe-b" => {
            return Some(Ok(swin("swinv2-moe-b", 128, 32)));
        }
        "mixtral-8x7b" => (
            include_str!("configs/mixtral-8x7b.json"),
            "mistralai/Mixtral-8x7B-v0.1",
        ),
        "olmoe-1b-7b" => (
            include_str!("configs/olmoe-1b-7b.json"),
            "allenai/OLMoE-1B-7B-0924",
        ),
        "gpt-oss-20b" => (
            include_str!("configs/gpt-oss-20b.json"),
            "openai/gpt-oss-20b",
        ),
        "qwen3-235b-a22b" => (
            include_str!("configs/qwen3-235b-a22b.json"),
            "Qwen/Qwen3-235B-A22B",
        ),
        "deepseek-v3" => (
            include_str!("configs/deepseek-v3.json"),
            "deepseek-ai/DeepSeek-V3",
        ),
        _ => return None,
    };
    let source = format!("config.json of huggingface.co/{repository}");
    Some(from_config(config, name, &source, tokens))
}

fn swin(name: &'static str, width: u64, experts: u64) -> ModelSpec {
    Swin {
        name,
        width,
        depths: [2, 2, 18, 2],
        experts,
    }
    .spec()
}
