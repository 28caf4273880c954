//! The Mixture-of-Experts layer, as the user states it and as resolved for a world size.

use super::{DType, Gate};
use serde::{Deserialize, Serialize};

/// A setting that contradicts itself or another one; names the field and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: expected {expected}, found {found}")]
pub struct SpecError {
    /// The field in kebab-case, as in TOML and on the command line.
    pub field: &'static str,
    /// What would have been accepted.
    pub expected: String,
    /// What was given.
    pub found: String,
}

impl SpecError {
    /// An error on `field`.
    pub fn new(field: &'static str, expected: impl Into<String>, found: impl ToString) -> Self {
        SpecError {
            field,
            expected: expected.into(),
            found: found.to_string(),
        }
    }
}

/// How many experts the layer has.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Experts {
    /// E_g of the paper: experts per GPU; 0.5 means one expert over two GPUs.
    PerGpu(f64),
    /// E of the paper: experts over the whole world.
    Total(u64),
}

/// One MoE layer (Tutel, Table 3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LayerSpec {
    /// T: tokens per step on one GPU.
    pub tokens_per_step: u64,
    /// D: channels of a token.
    pub model_dim: u64,
    /// H: hidden channels of the expert FFN.
    pub hidden_dim: u64,
    /// E or E_g.
    pub experts: Experts,
    /// k: experts per token.
    pub top_k: u32,
    /// The capacity setting x of Figure 10: above 0 a fixed factor f, 0 the smallest f that drops
    /// nothing, below 0 as 0 but at most -x.
    pub capacity_factor: f64,
    /// Number type of tensors and GEMMs.
    pub dtype: DType,
    /// How the gate scores experts.
    #[serde(default, skip_serializing_if = "Gate::is_linear")]
    pub gate: Gate,
}

/// Largest sizes accepted; beyond them byte counts could leave 64 bits.
const MAX_SIZE: u64 = 1 << 32;

impl Default for LayerSpec {
    /// The layer of the paper's whole-layer experiment (Section 5.2, Figure 14).
    fn default() -> Self {
        LayerSpec {
            tokens_per_step: 16_384,
            model_dim: 2_048,
            hidden_dim: 2_048,
            experts: Experts::PerGpu(2.0),
            top_k: 2,
            capacity_factor: 1.0,
            dtype: DType::Tf32,
            gate: Gate::Linear,
        }
    }
}

/// A layer on a world of GPUs: every number checked and every ratio an integer.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedLayer {
    /// The layer as stated.
    pub spec: LayerSpec,
    /// W: GPUs.
    pub world_size: u64,
    /// E: experts over all GPUs.
    pub num_experts: u64,
    /// Experts the gate chooses among: E, or fewer where some are held several times
    /// ([`crate::balance`]).
    pub gate_experts: u64,
    /// Whole experts a GPU holds: E/W, or 1 where an expert spans several GPUs.
    pub local_experts: u64,
    /// GPUs that share one expert: W/E, or 1 where a GPU holds whole experts.
    pub sharded_count: u64,
}

impl LayerSpec {
    /// Checks the layer and resolves it for `world_size` GPUs.
    ///
    /// # Errors
    /// The first setting out of range, or an expert count that does not divide over the GPUs.
    pub fn resolve(&self, world_size: u64) -> Result<ResolvedLayer, SpecError> {
        let sized = |field, value: u64| match value {
            1..=MAX_SIZE => Ok(()),
            _ => Err(SpecError::new(field, format!("1 to {MAX_SIZE}"), value)),
        };
        sized("tokens-per-step", self.tokens_per_step)?;
        sized("model-dim", self.model_dim)?;
        sized("hidden-dim", self.hidden_dim)?;
        if self.model_dim.saturating_mul(self.hidden_dim) > 1 << 40 {
            return Err(SpecError::new(
                "hidden-dim",
                "model-dim * hidden-dim up to 2^40",
                self.hidden_dim,
            ));
        }
        if self.tokens_per_step.saturating_mul(self.model_dim) > 1 << 42 {
            return Err(SpecError::new(
                "tokens-per-step",
                "tokens-per-step * model-dim up to 2^42",
                self.tokens_per_step,
            ));
        }
        if !self.capacity_factor.is_finite() || self.capacity_factor.abs() > 1e6 {
            return Err(SpecError::new(
                "capacity-factor",
                "a number from -1e6 to 1e6",
                self.capacity_factor,
            ));
        }
        self.gate.check()?;
        let num_experts = self.num_experts(world_size)?;
        if self.top_k == 0 || u64::from(self.top_k) > num_experts {
            return Err(SpecError::new(
                "top-k",
                format!("1 to the {num_experts} experts"),
                self.top_k,
            ));
        }
        let (local_experts, sharded_count) = if num_experts >= world_size {
            (num_experts / world_size, 1)
        } else {
            (1, world_size / num_experts)
        };
        Ok(ResolvedLayer {
            spec: self.clone(),
            world_size,
            num_experts,
            gate_experts: num_experts,
            local_experts,
            sharded_count,
        })
    }

    fn num_experts(&self, world_size: u64) -> Result<u64, SpecError> {
        let (field, num_experts) = match self.experts {
            Experts::Total(total) => ("num-experts", total as f64),
            Experts::PerGpu(per_gpu) => ("experts-per-gpu", per_gpu * world_size as f64),
        };
        let found = match self.experts {
            Experts::Total(total) => total.to_string(),
            Experts::PerGpu(per_gpu) => format!("{per_gpu} on {world_size} GPUs"),
        };
        let whole = num_experts.is_finite()
            && (1.0..=1e9).contains(&num_experts)
            && (num_experts - num_experts.round()).abs() < 1e-6;
        let experts = num_experts.round() as u64;
        if whole && (experts.is_multiple_of(world_size) || world_size.is_multiple_of(experts)) {
            return Ok(experts);
        }
        Err(SpecError::new(
            field,
            format!(
                "experts that divide over {world_size} GPUs, or GPUs that divide over the experts"
            ),
            found,
        ))
    }
}

impl ResolvedLayer {
    /// T.
    pub fn tokens(&self) -> u64 {
        self.spec.tokens_per_step
    }

    /// Token copies one GPU routes a step: T·k.
    pub fn routed_copies(&self) -> u64 {
        self.tokens() * u64::from(self.spec.top_k)
    }

    /// Bytes of one token: D elements.
    pub fn token_bytes(&self) -> u64 {
        self.spec.model_dim * self.spec.dtype.bytes()
    }

    /// Weights of the gate, which every GPU holds.
    pub fn gate_weights(&self) -> u64 {
        self.spec
            .gate
            .weights(self.spec.model_dim, self.gate_experts)
    }

    /// Valid values of the adaptive parallelism parameter r: 0 and the divisors of W/E
    /// (Section 3.1 and the authors' code).
    pub fn valid_adaptive_r(&self) -> Vec<u64> {
        let divisors = (1..=self.sharded_count).filter(|r| self.sharded_count.is_multiple_of(*r));
        std::iter::once(0).chain(divisors).collect()
    }

    /// Elements of the two weight matrices and biases of all local experts: the slice of 1/W of all
    /// expert parameters that every GPU holds under every strategy.
    pub fn local_parameters(&self) -> u64 {
        let (d, h) = (self.spec.model_dim, self.spec.hidden_dim);
        let expert = 2 * d * h + h + d;
        (self.local_experts * expert).div_ceil(self.sharded_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractional_experts_share_gpus() {
        let layer = LayerSpec {
            experts: Experts::PerGpu(0.5),
            ..LayerSpec::default()
        };
        let resolved = layer.resolve(16).unwrap();
        assert_eq!(
            (
                resolved.num_experts,
                resolved.local_experts,
                resolved.sharded_count
            ),
            (8, 1, 2)
        );
        assert_eq!(resolved.valid_adaptive_r(), [0, 1, 2]);
    }

    #[test]
    fn experts_that_do_not_divide_are_named() {
        let layer = LayerSpec {
            experts: Experts::Total(12),
            ..LayerSpec::default()
        };
        let error = layer.resolve(16).unwrap_err();
        assert_eq!(error.field, "num-experts");
        assert!(error.to_string().contains("16 GPUs"), "{error}");
    }

    #[test]
    fn every_out_of_range_setting_is_refused() {
        let base = LayerSpec::default();
        for bad in [
            LayerSpec {
                tokens_per_step: 0,
                ..base.clone()
            },
            LayerSpec {
                model_dim: u64::MAX,
                ..base.clone()
            },
            LayerSpec {
                top_k: 0,
                ..base.clone()
            },
            LayerSpec {
                top_k: 5000,
                ..base.clone()
            },
            LayerSpec {
                capacity_factor: f64::NAN,
                ..base.clone()
            },
            LayerSpec {
                experts: Experts::PerGpu(f64::NAN),
                ..base.clone()
            },
            LayerSpec {
                experts: Experts::PerGpu(-1.0),
                ..base.clone()
            },
        ] {
            assert!(bad.resolve(64).is_err(), "{bad:?}");
        }
    }
}
