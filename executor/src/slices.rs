//! Expert weights as ranks hold them: a unique 1/W slice each, whatever the strategy (Section 3.1:
//! switching r migrates nothing).

use crate::ExecError;
use crate::inputs::ExpertWeights;
use crate::lower::WeightLayout;
use moeplan_sim::spec::ResolvedLayer;

/// Whether the channels of an expert divide over the ranks that share it.
///
/// # Errors
/// A model or hidden dimension that does not.
pub fn check(layer: &ResolvedLayer) -> Result<(), ExecError> {
    let shared = layer.sharded_count;
    for (field, size) in [
        ("model-dim", layer.spec.model_dim),
        ("hidden-dim", layer.spec.hidden_dim),
    ] {
        if !size.is_multiple_of(shared) {
            let expected = format!("a multiple of the {shared} ranks that share an expert");
            return Err(ExecError::input(field, expected, size));
        }
    }
    Ok(())
}

fn layout(layer: &ResolvedLayer) -> WeightLayout {
    WeightLayout {
        model_dim: layer.spec.model_dim as usize,
        hidden: layer.spec.hidden_dim as usize,
        biases: layer.spec.model_dim as usize,
    }
    .share(layer.sharded_count as usize)
}

/// Experts of `rank` and its share of their channels.
fn part(layer: &ResolvedLayer, rank: usize) -> (std::ops::Range<usize>, usize) {
    match layer.sharded_count as usize {
        1 => {
            let held = layer.local_experts as usize;
            (rank * held..(rank + 1) * held, 0)
        }
        shared => (rank / shared..rank / shared + 1, rank % shared),
    }
}

/// The slice of `rank`.
pub fn slice(layer: &ResolvedLayer, experts: &[ExpertWeights], rank: usize) -> Vec<f32> {
    let layout = layout(layer);
    let (d, h, full) = (
        layout.model_dim,
        layout.hidden,
        layer.spec.hidden_dim as usize,
    );
    let (held, share) = part(layer, rank);
    let mut slice = Vec::with_capacity(held.len() * layout.expert());
    for expert in &experts[held] {
        let channels = share * h..(share + 1) * h;
        for channel in channels.clone() {
            slice.extend((0..d).map(|row| expert.up[row * full + channel]));
        }
        slice.extend_from_slice(&expert.up_bias[channels.clone()]);
        slice.extend_from_slice(&expert.down[channels.start * d..channels.end * d]);
        let biases = share * layout.biases..(share + 1) * layout.biases;
        slice.extend_from_slice(&expert.down_bias[biases]);
    }
    slice
}

/// All experts, from the slices of all ranks.
pub fn join(layer: &ResolvedLayer, slices: &[&[f32]]) -> Vec<ExpertWeights> {
    let layout = layout(layer);
    let (d, h, full) = (
        layout.model_dim,
        layout.hidden,
        layer.spec.hidden_dim as usize,
    );
    let empty = ExpertWeights {
        up: vec![0.0; d * full],
        up_bias: vec![0.0; full],
        down: vec![0.0; full * d],
        down_bias: vec![0.0; d],
    };
    let mut experts = vec![empty; layer.num_experts as usize];
    for (rank, slice) in slices.iter().enumerate() {
        let (held, share) = part(layer, rank);
        for (expert, values) in experts[held].iter_mut().zip(slice.chunks(layout.expert())) {
            let [up, up_bias, down, down_bias] = layout.parts().map(|part| &values[part]);
            for channel in 0..h {
                for row in 0..d {
                    expert.up[row * full + share * h + channel] = up[channel * d + row];
                }
            }
            expert.up_bias[share * h..(share + 1) * h].copy_from_slice(up_bias);
            expert.down[share * h * d..(share + 1) * h * d].copy_from_slice(down);
            let biases = share * layout.biases..(share + 1) * layout.biases;
            expert.down_bias[biases].copy_from_slice(down_bias);
        }
    }
    experts
}
