//! Runs the settings of published experiments.

use moeplan_sim::compile::{Load, Routing};
use moeplan_sim::cost::analytic::Analytic;
use moeplan_sim::cost::nccl::NcclError;
use moeplan_sim::hardware::Hardware;
use moeplan_sim::model::{self, MemorySaving, ModelRun, Moe, Variant};
use moeplan_sim::policy::{best, candidates};
use moeplan_sim::simulate::{Scenario, Step};
use moeplan_sim::spec::{
    AllToAll, Choice, Encode, Experts, LayerSpec, Layout, Phase, SpecError, Strategy,
};
use moeplan_sim::units::Time;

/// One kind of cluster on which experiments are repeated.
#[derive(Debug)]
pub struct Lab {
    /// Its constants.
    pub hardware: Hardware,
    /// Its prices, under the software of the paper.
    pub model: Analytic,
}

impl Lab {
    /// A lab on `hardware`.
    ///
    /// # Errors
    /// Collective parameters that make no model.
    pub fn new(hardware: Hardware) -> Result<Lab, NcclError> {
        let model = Analytic::new(&hardware)?;
        Ok(Lab { hardware, model })
    }

    /// The best training step of `strategy` under balanced routing on `gpus` GPUs, 8 a node.
    ///
    /// # Errors
    /// A setting the layer cannot run.
    pub fn step(
        &self,
        layer: &LayerSpec,
        gpus: u64,
        strategy: &Strategy,
    ) -> Result<Step, SpecError> {
        let resolved = layer.resolve(gpus)?;
        let scenario = Scenario {
            layer: &resolved,
            gpus_per_node: self.hardware.node.gpus,
            memory_bytes: self.hardware.memory_bytes(),
            reserved_bytes: self.hardware.reserved_bytes(),
            model: &self.model,
            phase: Phase::Training,
        };
        let load = Load::new(
            &resolved,
            layer.capacity_factor,
            strategy.padding,
            &Routing::Balanced,
        );
        best(&scenario, &candidates(strategy, &resolved)?, &load)
    }

    /// Milliseconds of [`Lab::step`].
    ///
    /// # Errors
    /// As [`Lab::step`].
    pub fn ms(&self, layer: &LayerSpec, gpus: u64, strategy: &Strategy) -> Result<f64, SpecError> {
        Ok(self.step(layer, gpus, strategy)?.time.as_ms_f64())
    }
}

impl Lab {
    /// Images per second and GPU of the model `name`, its MoE layers changed by `change`, 8 GPUs a node.
    ///
    /// # Errors
    /// A setting the model cannot run.
    pub fn images(
        &self,
        name: &str,
        gpus: u64,
        phase: Phase,
        variant: &Variant,
        change: impl Fn(&mut Moe),
    ) -> Result<f64, SpecError> {
        let unknown = || SpecError::new("model", "a preset", name);
        let model = model::preset(name, 1)
            .ok_or_else(unknown)?
            .map_err(|_| unknown())?;
        let model = model.with_moe(change);
        let run = ModelRun {
            model: &model,
            hardware: &self.hardware,
            prices: &self.model,
            gpus,
            gpus_per_node: self.hardware.node.gpus,
            batch: model.batch,
            phase,
            saving: MemorySaving::default(),
            tensor_parallel: 1,
        };
        Ok(model::step(&run, variant)?.rate_per_gpu)
    }
}

/// The layer of Table 2: H = D = 4K, E_g = 2, 64K tokens a step.
pub fn table2_layer() -> LayerSpec {
    LayerSpec {
        tokens_per_step: 65_536,
        model_dim: 4_096,
        hidden_dim: 4_096,
        ..LayerSpec::default()
    }
}

/// A layer of D = H = 4096 and E_g = 2 with `tokens` a step (Table 5, Figure 13).
pub fn square_layer(tokens: u64, capacity_factor: f64) -> LayerSpec {
    LayerSpec {
        tokens_per_step: tokens,
        model_dim: 4_096,
        hidden_dim: 4_096,
        capacity_factor,
        ..LayerSpec::default()
    }
}

/// The smaller layer of Figure 12: 16 experts, samples taken as tokens a GPU.
pub fn figure12_base(capacity_factor: f64) -> LayerSpec {
    LayerSpec {
        tokens_per_step: 4_096,
        hidden_dim: 2_048,
        experts: Experts::Total(16),
        capacity_factor,
        ..LayerSpec::default()
    }
}

/// The larger layer of Figure 12.
pub fn figure12_large(capacity_factor: f64) -> LayerSpec {
    LayerSpec {
        tokens_per_step: 1_024,
        hidden_dim: 32_768,
        ..figure12_base(capacity_factor)
    }
}

/// The 81 models of Table 6.
pub fn table6_layers() -> Vec<LayerSpec> {
    let mut layers = Vec::new();
    for per_gpu in [0.5, 1.0, 2.0] {
        for model_dim in [1_024, 2_048, 4_096] {
            for hidden_dim in [1_024, 2_048, 4_096] {
                for tokens_per_step in [4_096, 16_384, 65_536] {
                    layers.push(LayerSpec {
                        tokens_per_step,
                        model_dim,
                        hidden_dim,
                        experts: Experts::PerGpu(per_gpu),
                        ..LayerSpec::default()
                    });
                }
            }
        }
    }
    layers
}

/// Tutel's kernels and layout with a fixed algorithm and degree, r = 1.
pub fn tutel(all_to_all: AllToAll, degree: u64) -> Strategy {
    Strategy {
        encode: Encode::Sparse,
        layout: Layout::Flexible,
        all_to_all: Choice::Fixed(all_to_all),
        pipeline_degree: Choice::Fixed(degree),
        ..Strategy::fairseq()
    }
}

/// Tutel with (d, a) adaptive and r = 1, as in Figure 14.
pub fn adaptive_pipelining() -> Strategy {
    Strategy {
        all_to_all: Choice::Auto,
        pipeline_degree: Choice::Auto,
        ..tutel(AllToAll::Linear, 1)
    }
}

/// The baseline with sparse encode and decode.
pub fn fast_kernels(all_to_all: AllToAll, layout: Layout) -> Strategy {
    Strategy {
        layout,
        ..tutel(all_to_all, 1)
    }
}

/// One Table 6 model on one scale: times of linear at degrees 1, 2, 4, 8, then of 2DH.
///
/// # Errors
/// As [`Lab::step`].
pub fn table6_times(lab: &Lab, layer: &LayerSpec, gpus: u64) -> Result<Vec<Time>, SpecError> {
    let mut times = Vec::new();
    for all_to_all in [AllToAll::Linear, AllToAll::TwoDh] {
        for degree in [1, 2, 4, 8] {
            times.push(lab.step(layer, gpus, &tutel(all_to_all, degree))?.time);
        }
    }
    Ok(times)
}
