//! Layers known by name.

use moeplan_sim::spec::{DType, Experts, Gate, LayerSpec};

/// A layer with its source.
#[derive(Debug, Clone)]
pub struct LayerPreset {
    /// Name on the command line.
    pub name: &'static str,
    /// Where its numbers come from.
    pub source: &'static str,
    /// The layer.
    pub layer: LayerSpec,
}

/// All layer presets; the first is the default.
pub fn layers() -> Vec<LayerPreset> {
    vec![
        LayerPreset {
            name: "paper",
            source: "Tutel, Section 5.2, Figure 14: the whole-layer experiment",
            layer: LayerSpec::default(),
        },
        LayerPreset {
            name: "table2",
            source: "Tutel, Table 2: H = 4K, D = 4K, two experts a GPU, 64K tokens a step",
            layer: LayerSpec {
                tokens_per_step: 65_536,
                model_dim: 4_096,
                hidden_dim: 4_096,
                ..LayerSpec::default()
            },
        },
        LayerPreset {
            name: "swinv2-moe-b",
            source: "Tutel, Section 5.3 and Table 11: SwinV2-MoE-B, an MoE layer of stage 3 \
                     (12 x 12 tokens of 512 channels from an image of 192 x 192); 128 images a GPU \
                     are assumed",
            layer: LayerSpec {
                tokens_per_step: 18_432,
                model_dim: 512,
                hidden_dim: 2_048,
                experts: Experts::Total(32),
                top_k: 1,
                capacity_factor: 1.0,
                dtype: DType::Fp16,
                gate: Gate::Linear,
            },
        },
    ]
}
