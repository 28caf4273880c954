//! SwinV2-MoE (Tutel, Section 5.3, appendix C; Swin Transformer V2, arXiv 2111.09883): windowed cosine
//! attention, patch merging, norms after the residual branch, an MoE in place of every other
//! feed-forward of the last two stages.
//!
//! Passes over memory are those of the authors' PyTorch code under automatic mixed precision, counted
//! kernel by kernel: products are half precision, norms, softmax and the residual stream single.

use super::{ModelSpec, Moe, Part, Pass, Section, Unit, Work};
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
            let window = WINDOW.min(side);
            for block in 0..self.depths[stage] {
                let shifted = block % 2 == 1 && window < side;
                let moe = stage >= 2 && block % 2 == 1;
                attention(&mut parts, dim, side, window, shifted);
                parts.push(pass(Section::Dense, side * side * dim, [6, 6, 0, 0], 1));
                let moe_layer = Moe {
                    tokens: side * side,
                    model_dim: dim,
                    hidden_dim: 4 * dim,
                    gated: false,
                    bias: true,
                    experts: self.experts,
                    top_k: 1,
                    capacity_factor: 1.0,
                };
                if moe {
                    parts.push(Part {
                        section: Section::Dense,
                        work: Work::Moe(moe_layer),
                    });
                } else {
                    parts.extend(feed_forward(&moe_layer, DType::Fp16));
                }
                parts.push(norm_and_residual(Section::Dense, side * side, dim));
            }
            if stage < 3 {
                parts.extend(merging(dim, side));
            }
        }
        let (dim, tokens) = (self.width << 3, (IMAGE / PATCH >> 3).pow(2));
        parts.push(pass_of(
            Section::Dense,
            tokens * dim,
            [12, 24, 0, 4],
            3,
            2 * dim,
        ));
        parts.push(linear(Section::Dense, 1, dim, CLASSES, true));
        // Cross entropy in single precision.
        parts.push(pass(Section::Dense, CLASSES, [6, 24, 16, 8], 3));
        ModelSpec {
            name: self.name.into(),
            source: "Tutel, appendix C, Tables 11 and 12: SwinV2, 192 x 192 images, windows of 12 x 12, 21,841 \
                     classes; 128 images a GPU as in the authors' pre-training command (github.com/microsoft/Swin-Transformer)"
                .into(),
            unit: Unit::Images,
            batch: 128,
            dtype: DType::Fp16,
            gradient_bytes: 4,
            // PyTorch 1.8's AdamW, one tensor after the other: decay 8, moments 8 + 12 + 8 + 12, root 8,
            // scale 8, epsilon 8, update 16; and before it unscaling 8 and clipping 12.
            optimizer_bytes: 108,
            optimizer_kernels: 13,
            parts,
        }
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
            2 * dim,
        ),
    ]
}

/// Windowed cosine attention with its projections, norm and residual.
fn attention(parts: &mut Vec<Part>, dim: u64, side: u64, window: u64, shifted: bool) {
    let section = Section::Attention;
    let (tokens, keys, heads) = (side * side, window * window, dim / HEAD);
    let elements = tokens * dim;
    let scores = tokens * keys * heads;
    let bias = 3 * BIAS_MLP + BIAS_MLP * heads + heads;
    // Roll (where shifted) and window partition in single precision, then a cast.
    let roll = if shifted { 8 } else { 0 };
    parts.push(pass(section, elements, [roll + 8 + 6, roll + 8 + 6, 0, 0], 3));
    parts.push(linear_with(section, tokens, dim, 3 * dim, 2 * dim));
    // Queries and keys normalised in single precision: norm 6 + 4, division 6, each; casts 6 each; a
    // copy of the values 4. Backward goes through norm and division: about twice that.
    parts.push(pass(section, elements, [32 + 12 + 4, 80, 0, 16], 11));
    let windows = tokens / keys * heads;
    parts.push(Part {
        section,
        work: Work::Product {
            batch: windows,
            m: keys,
            n: keys,
            k: HEAD,
        },
    });
    // Learned scale 6, relative position bias 8, mask (where shifted) 8, softmax 8, cast 6.
    // Backward: softmax 12, bias 4, scale and its gradient 20, cast 6.
    let mask = if shifted { 8 } else { 0 };
    parts.push(pass_of(
        section,
        scores,
        [6 + 8 + mask + 8 + 6, 12 + 4 + 20 + 6, 0, 6],
        5,
        bias,
    ));
    // The bias itself comes of a small MLP over relative positions: a dozen small kernels.
    parts.push(pass(section, 1, [12, 12, 0, 0], 12));
    parts.push(Part {
        section,
        work: Work::Product {
            batch: windows,
            m: keys,
            n: HEAD,
            k: keys,
        },
    });
    parts.push(pass(section, elements, [4, 4, 0, 0], 1));
    parts.push(linear(section, tokens, dim, dim, true));
    // Windows back to the image, and rolled back.
    parts.push(pass(section, elements, [4 + roll / 2, 4 + roll / 2, 0, 0], 2));
    parts.push(norm_and_residual(section, tokens, dim));
}

/// Norm of a branch (cast 6, norm 8), stochastic depth in training (8), and the residual sum (12).
/// Backward: cast 6, norm 20, stochastic depth 8, the sum of both gradients 12.
fn norm_and_residual(section: Section, tokens: u64, dim: u64) -> Part {
    pass_of(section, tokens * dim, [26, 46, 8, 4], 4, 2 * dim)
}

/// Two linear layers and a GELU between them; of a gated expert a third, and the product of two.
pub(super) fn feed_forward(moe: &Moe, dtype: DType) -> Vec<Part> {
    let (dim, hidden) = (moe.model_dim, moe.hidden_dim);
    let (fan, [forward, backward, saved]) = if moe.gated {
        (2, [3, 5, 2])
    } else {
        (1, [2, 3, 1])
    };
    let elements = moe.tokens * hidden;
    let passes = [forward, backward, 0, saved].map(|passes| passes * dtype.bytes());
    vec![
        linear(Section::Dense, moe.tokens, dim, fan * hidden, moe.bias),
        pass(Section::Dense, elements, passes, 1),
        linear(Section::Dense, moe.tokens, hidden, dim, moe.bias),
    ]
}

/// Four neighbours side by side, a linear layer to half their channels, and a norm.
fn merging(dim: u64, side: u64) -> Vec<Part> {
    let (tokens, elements) = (side * side / 4, side * side * dim);
    vec![
        pass(Section::Dense, elements, [8 + 6, 8 + 6, 0, 0], 2),
        linear(Section::Dense, tokens, 4 * dim, 2 * dim, false),
        pass_of(Section::Dense, elements / 2, [14, 26, 0, 4], 2, 4 * dim),
    ]
}

pub(super) fn linear(section: Section, rows: u64, input: u64, output: u64, bias: bool) -> Part {
    linear_with(section, rows, input, output, if bias { output } else { 0 })
}

fn linear_with(section: Section, rows: u64, input: u64, output: u64, bias: u64) -> Part {
    let work = Work::Linear {
        rows,
        input,
        output,
        bias,
    };
    Part { section, work }
}

pub(super) fn pass(section: Section, elements: u64, per_element: [u64; 4], kernels: u64) -> Part {
    pass_of(section, elements, per_element, kernels, 0)
}

/// A pass over `elements`, by bytes an element: forward, backward, forward in training besides, saved.
pub(super) fn pass_of(
    section: Section,
    elements: u64,
    [forward, backward, training, saved]: [u64; 4],
    kernels: u64,
    parameters: u64,
) -> Part {
    let pass = Pass {
        kernels,
        forward: forward * elements,
        backward: backward * elements,
        training: training * elements,
        saved: saved * elements,
        parameters,
    };
    Part {
        section,
        work: Work::Pass(pass),
    }
}
