//! SwinV2-MoE (Tutel, Section 5.3, appendix C), as its authors published it (github.com/microsoft/Swin-Transformer,
//! `models/swin_transformer_moe.py`): windowed attention with a bias from relative positions, patch
//! merging, an MoE in place of every other feed-forward of the last two stages.
//!
//! Passes over memory are those of that code under PyTorch's automatic mixed precision, counted kernel
//! by kernel: products are half precision; norms, softmax and the residual stream are single. MoE layers
//! work in single precision throughout, since Tutel brings its input to the type of the experts'
//! parameters (`tutel/impls/moe_layer.py`).

use super::{Cut, Linear, ModelSpec, Moe, Part, Pass, Section, Unit, Work, in_block};
use crate::spec::DType;

/// A model of the family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Swin {
    pub(super) name: &'static str,
    /// Channels of the first stage; every stage doubles them.
    pub(super) width: u64,
    pub(super) depths: [u64; 4],
    pub(super) experts: u64,
}

/// Image side (IN-22K pre-training, Section 12 of the spec sheet).
const IMAGE: u64 = 192;
/// Side of a patch.
const PATCH: u64 = 4;
/// Side of an attention window.
const WINDOW: u64 = 12;
/// Channels of a head.
const HEAD: u64 = 32;
/// Classes of ImageNet-22K.
const CLASSES: u64 = 21_841;
/// Hidden channels of the MLP that makes the relative position bias.
const BIAS_MLP: u64 = 512;

impl Swin {
    pub(super) fn spec(self) -> ModelSpec {
        let mut parts = embedding(self.width);
        for stage in 0..4 {
            let dim = self.width << stage;
            let side = (IMAGE / PATCH) >> stage;
            for layer in 0..self.depths[stage] {
                let block = self.depths[..stage].iter().sum::<u64>() + layer;
                parts.extend(in_block(Some(block), self.block(stage, layer)));
            }
            if stage < 3 {
                parts.extend(merging(dim, side));
            }
        }
        let (dim, tokens) = (self.width << 3, ((IMAGE / PATCH) >> 3).pow(2));
        parts.push(pass_of(
            Section::Dense,
            tokens * dim,
            [12, 24, 0, 4],
            3,
            &[dim; 2],
        ));
        parts.push(linear(Section::Dense, 1, dim, CLASSES, true));
        // Cross entropy in single precision.
        parts.push(pass(Section::Dense, CLASSES, [6, 24, 16, 8], 3));
        ModelSpec {
            name: self.name.into(),
            source: "github.com/microsoft/Swin-Transformer, configs/swinmoe: 192 x 192 images, windows of \
                     12 x 12, 21,841 classes, 4,096 images a step on 32 GPUs; f = 1 as in Tutel, Table 11"
                .into(),
            unit: Unit::Images,
            batch: 128,
            dtype: DType::Fp16,
            gradient_bytes: 4,
            // PyTorch 1.8's AdamW, one tensor after the other: decay 8, moments 8 + 12 + 8 + 12, root 8,
            // scale 8, epsilon 8, update 16; and before it unscaling 8 and clipping 12.
            optimizer_bytes: 108,
            optimizer_kernels: 13,
            head_groups: 1,
            parts,
        }
    }

    /// Layer `layer` of a stage: attention in windows, every other time shifted ones, and a feed-forward, every other
    /// time of experts in the last two stages.
    fn block(&self, stage: usize, layer: u64) -> Vec<Part> {
        let dim = self.width << stage;
        let side = (IMAGE / PATCH) >> stage;
        let window = WINDOW.min(side);
        let odd = layer % 2 == 1;
        let mut parts = Vec::new();
        attention(&mut parts, dim, side, window, odd && window < side);
        parts.push(norm(Section::Dense, side * side, dim));
        let moe = Moe {
            tokens: side * side,
            model_dim: dim,
            hidden_dim: 4 * dim,
            gated: false,
            bias: true,
            experts: self.experts,
            top_k: 1,
            capacity_factor: 1.0,
            dtype: DType::Tf32,
        };
        if stage >= 2 && odd {
            parts.push(Part::new(Section::Dense, Work::Moe(moe)));
        } else {
            parts.extend(feed_forward(&moe, DType::Fp16));
        }
        parts.push(residual(Section::Dense, side * side * dim));
        parts
    }
}

/// Patches of the image to channels, and a norm.
fn embedding(dim: u64) -> Vec<Part> {
    let tokens = (IMAGE / PATCH).pow(2);
    vec![
        linear(Section::Dense, tokens, PATCH * PATCH * 3, dim, true),
        pass_of(
            Section::Dense,
            tokens * dim,
            [4 + 6 + 8, 40, 0, 4],
            3,
            &[dim; 2],
        ),
    ]
}

/// Windowed attention with its projections, norm and residual. Bytes an element, forward and backward:
/// roll 8 and 8 (where shifted), window partition 8 and 8, cast 6 and 6.
fn attention(parts: &mut Vec<Part>, dim: u64, side: u64, window: u64, shifted: bool) {
    let section = Section::Attention;
    let (tokens, keys, heads) = (side * side, window * window, dim / HEAD);
    let elements = tokens * dim;
    let windows = tokens / keys * heads;
    let bias_mlp = [2 * BIAS_MLP, BIAS_MLP, BIAS_MLP * heads];
    let roll = if shifted { 8 } else { 0 };
    let product = |n, k| {
        let work = Work::Product {
            batch: windows,
            m: keys,
            n,
            k,
        };
        Part::new(section, work)
    };
    parts.push(norm(section, tokens, dim));
    parts.push(pass(section, elements, [roll + 14, roll + 14, 0, 0], 3));
    parts.push(linear(section, tokens, dim, 3 * dim, true));
    // Queries scaled 4, and queries, keys and values copied for batched products 12. Backward besides: the
    // gradient of each of the three is written into zeros of all three (18 + 12) and summed (36), and the
    // bias' gradient read (6).
    parts.push(pass(section, elements, [16, 16 + 66 + 6, 0, 0], 4));
    parts.push(product(keys, HEAD));
    // Bias 4, cast 6, softmax 8, cast 6; the mask makes the first cast where there is one. Backward: casts
    // 6 + 6, softmax 12, gradient of the bias 4.
    parts.push(pass_of(
        section,
        tokens * keys * heads,
        [24, 28, 0, 4],
        4,
        &bias_mlp,
    ));
    // The bias comes of a small MLP over relative positions: a dozen small kernels.
    parts.push(pass(section, 1, [12, 12, 0, 0], 12));
    parts.push(product(HEAD, keys));
    parts.push(pass(section, elements, [4, 4, 0, 0], 1));
    parts.push(linear(section, tokens, dim, dim, true));
    // Windows back to the image and rolled back, in half precision; gradient of the projection's bias 2.
    parts.push(pass(
        section,
        elements,
        [4 + roll / 2, 6 + roll / 2, 0, 0],
        2,
    ));
    parts.push(residual(section, elements));
}

/// Norm: 8. Backward: of the input 12, of scale and shift 8.
fn norm(section: Section, tokens: u64, dim: u64) -> Part {
    pass_of(section, tokens * dim, [8, 20, 0, 4], 1, &[dim; 2])
}

/// The sum of a branch with the residual stream, 10, and stochastic depth in training, 8. Backward: a cast 6, stochastic
/// depth 8, the sum of both gradients 12.
fn residual(section: Section, elements: u64) -> Part {
    pass(section, elements, [10, 26, 8, 0], 2)
}

/// Two linear layers and a GELU between them, of a gated expert three and the product of two; before them
/// a cast where the stream is wider than `dtype`. Biases' gradients are read once more.
pub(super) fn feed_forward(moe: &Moe, dtype: DType) -> Vec<Part> {
    let (tokens, dim, hidden) = (moe.tokens, moe.model_dim, moe.hidden_dim);
    let (fan, [forward, backward, saved]) = if moe.gated {
        (2, [3, 5, 2])
    } else {
        (1, [2, 3, 1])
    };
    let bias = u64::from(moe.bias);
    let passes = [forward, backward + bias, 0, saved].map(|passes| passes * dtype.bytes());
    let mut parts = vec![
        linear(Section::Dense, tokens, dim, fan * hidden, moe.bias),
        pass(Section::Dense, tokens * hidden, passes, 1),
        linear(Section::Dense, tokens, hidden, dim, moe.bias),
    ];
    if moe.dtype.bytes() > dtype.bytes() {
        let cast = moe.dtype.bytes() + dtype.bytes();
        let around = [cast, cast + bias * dtype.bytes(), 0, 0];
        parts.insert(0, pass(Section::Dense, tokens * dim, around, 1));
    }
    parts
}

/// Four neighbours side by side 8, a norm 8, a cast 6, a linear layer to half their channels, a cast of its
/// output 3 an input element.
fn merging(dim: u64, side: u64) -> Vec<Part> {
    let (tokens, elements) = (side * side / 4, side * side * dim);
    vec![
        pass_of(
            Section::Dense,
            elements,
            [8 + 8 + 6, 8 + 20 + 6, 0, 4],
            3,
            &[4 * dim; 2],
        ),
        linear(Section::Dense, tokens, 4 * dim, 2 * dim, false),
        pass(Section::Dense, elements, [3, 3, 0, 0], 1),
    ]
}

pub(super) fn linear(section: Section, rows: u64, input: u64, output: u64, bias: bool) -> Part {
    let linear = Linear {
        rows,
        input,
        output,
        bias: if bias { output } else { 0 },
        cut: Cut::Whole,
    };
    Part::new(section, Work::Linear(linear))
}

pub(super) fn pass(section: Section, elements: u64, per_element: [u64; 4], kernels: u64) -> Part {
    pass_of(section, elements, per_element, kernels, &[])
}

/// A pass over `elements`, by bytes an element: forward, backward, forward in training besides, saved. It uses tensors of so
/// many `parameters`.
pub(super) fn pass_of(
    section: Section,
    elements: u64,
    [forward, backward, training, saved]: [u64; 4],
    kernels: u64,
    parameters: &[u64],
) -> Part {
    let pass = Pass {
        kernels,
        forward: forward * elements,
        backward: backward * elements,
        training: training * elements,
        saved: saved * elements,
        parameters: parameters.iter().sum(),
        tensors: parameters.iter().filter(|&&size| size > 0).count() as u64,
        is_cut: false,
    };
    Part::new(section, Work::Pass(pass))
}
