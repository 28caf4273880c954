//! The classifier around the MoE layers, its gradients and Adam.
//!
//! Patches are embedded, with a position each; then, layer by layer, every token gets a projection
//! of the mean of its image (the only way in which tokens see each other) and the output of a MoE
//! layer; the mean of the tokens is classified.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::data::{CLASSES, Images, PATCHES, PIXELS};
use crate::math::{
    Store, add_normalize_gradient, add_outer, add_product, add_product_transposed, add_rows,
    normalize, softmax,
};
use crate::moe::{Expert, Moe, Routed};

/// Model dimension.
pub(crate) const DIM: usize = 32;
/// Hidden size of an expert.
pub(crate) const HIDDEN: usize = 32;

#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) layers: usize,
    pub(crate) experts: usize,
}

struct Layer {
    mix: Range<usize>,
    moe: Moe,
}

pub(crate) struct Model {
    store: Store,
    embed: Range<usize>,
    positions: Range<usize>,
    layers: Vec<Layer>,
    head: Range<usize>,
    head_bias: Range<usize>,
    /// First and second moments, and the number of updates.
    moments: (Vec<f32>, Vec<f32>, i32),
}

/// What a batch of one rank gives.
pub(crate) struct Trained {
    /// Mean cross-entropy, without the balancing loss.
    pub(crate) loss: f32,
    /// Balancing loss, mean of the layers, without its weight; 1 when balanced.
    pub(crate) balance: f32,
    /// Copies per expert, layer by layer.
    pub(crate) routing: Vec<Vec<u32>>,
}

/// What the backward pass needs of the forward pass.
struct Forward {
    tokens: Vec<f32>,
    layers: Vec<LayerForward>,
    normed: Vec<f32>,
    scales: Vec<f32>,
    pooled: Vec<f32>,
    probabilities: Vec<f32>,
}

struct LayerForward {
    means: Vec<f32>,
    normed: Vec<f32>,
    scales: Vec<f32>,
    routed: Routed,
}

impl Model {
    pub(crate) fn new(sizes: Sizes, seed: u64) -> Self {
        let mut values = Vec::new();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Uniform with this standard deviation.
        let mut piece = |len: usize, deviation: f32| {
            let start = values.len();
            values.extend((0..len).map(|_| {
                let unit = rng.next_u32() as f32 / u32::MAX as f32;
                (2.0 * unit - 1.0) * deviation * 1.732
            }));
            start..values.len()
        };
        let by_root = |fan_in: usize| 1.0 / libm::sqrtf(fan_in as f32);
        let embed = piece(PIXELS * DIM, by_root(PIXELS));
        let positions = piece(PATCHES * DIM, 0.5);
        let layers = (0..sizes.layers)
            .map(|_| Layer {
                mix: piece(DIM * DIM, 0.5 * by_root(DIM)),
                moe: Moe {
                    gate: piece(DIM * sizes.experts, 0.1 * by_root(DIM)),
                    experts: (0..sizes.experts)
                        .map(|_| Expert {
                            w1: piece(DIM * HIDDEN, 1.4 * by_root(DIM)),
                            b1: piece(HIDDEN, 0.0),
                            w2: piece(HIDDEN * DIM, 0.5 * by_root(HIDDEN)),
                            b2: piece(DIM, 0.0),
                        })
                        .collect(),
                },
            })
            .collect();
        let head = piece(DIM * CLASSES, 0.1 * by_root(DIM));
        let head_bias = piece(CLASSES, 0.0);
        let count = values.len();
        Self {
            store: Store {
                values,
                gradients: vec![0.0; count],
            },
            embed,
            positions,
            layers,
            head,
            head_bias,
            moments: (vec![0.0; count], vec![0.0; count], 0),
        }
    }

    pub(crate) fn parameters(&self) -> usize {
        self.store.values.len()
    }

    pub(crate) fn clear_gradients(&mut self) {
        self.store.gradients.fill(0.0);
    }

    /// Adds the gradients of one rank's batch, times `scale`.
    pub(crate) fn train(
        &mut self,
        images: &Images,
        batch: &[usize],
        balance: f32,
        scale: f32,
    ) -> Trained {
        let forward = self.forward(images, batch);
        let labels: Vec<usize> = batch.iter().map(|&image| images.labels[image]).collect();
        let loss = cross_entropy(&forward.probabilities, &labels);
        self.backward(&forward, &labels, balance * scale, scale);
        let layers = || forward.layers.iter().map(|layer| &layer.routed);
        Trained {
            loss,
            balance: layers().map(Routed::balance).sum::<f32>() / self.layers.len() as f32,
            routing: layers().map(Routed::counts).collect(),
        }
    }

    /// The part of the images that are classified right.
    pub(crate) fn accuracy(&self, images: &Images) -> f32 {
        let all: Vec<usize> = (0..images.len()).collect();
        let mut right = 0;
        for batch in all.chunks(64) {
            let forward = self.forward(images, batch);
            let rows = forward.probabilities.chunks_exact(CLASSES);
            right += rows
                .zip(batch)
                .filter(|(row, image)| {
                    let best = (0..CLASSES).fold(0, |a, b| if row[b] > row[a] { b } else { a });
                    best == images.labels[**image]
                })
                .count();
        }
        right as f32 / images.len() as f32
    }

    /// One step of Adam.
    pub(crate) fn update(&mut self, rate: f32) {
        let (first, second, count) = &mut self.moments;
        *count += 1;
        let (b1, b2) = (0.9_f32, 0.999_f32);
        let fix_1 = 1.0 - libm::powf(b1, *count as f32);
        let fix_2 = 1.0 - libm::powf(b2, *count as f32);
        let moments = first.iter_mut().zip(second);
        let values = self.store.values.iter_mut().zip(&self.store.gradients);
        for ((value, &gradient), (m, v)) in values.zip(moments) {
            *m = b1 * *m + (1.0 - b1) * gradient;
            *v = b2 * *v + (1.0 - b2) * gradient * gradient;
            *value -= rate * (*m / fix_1) / (libm::sqrtf(*v / fix_2) + 1e-8);
        }
    }

    fn forward(&self, images: &Images, batch: &[usize]) -> Forward {
        let store = &self.store;
        let inputs: Vec<f32> = batch
            .iter()
            .flat_map(|&image| images.image(image))
            .copied()
            .collect();
        let mut h = store.value(&self.positions).repeat(batch.len());
        add_product(&mut h, &inputs, store.value(&self.embed), PIXELS, DIM);
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let means = image_means(&h);
            let mut shift = vec![0.0; means.len()];
            add_product(&mut shift, &means, store.value(&layer.mix), DIM, DIM);
            for (h, shift) in h
                .chunks_exact_mut(PATCHES * DIM)
                .zip(shift.chunks_exact(DIM))
            {
                for h in h.chunks_exact_mut(DIM) {
                    add_rows(h, shift);
                }
            }
            let (normed, scales) = normalize(&h, DIM);
            let routed = layer.moe.forward(store, normed.clone(), &mut h);
            layers.push(LayerForward {
                means,
                normed,
                scales,
                routed,
            });
        }
        let (normed, scales) = normalize(&h, DIM);
        let pooled = image_means(&normed);
        let mut probabilities = store.value(&self.head_bias).repeat(batch.len());
        let head = store.value(&self.head);
        add_product(&mut probabilities, &pooled, head, DIM, CLASSES);
        softmax(&mut probabilities, CLASSES);
        Forward {
            tokens: inputs,
            layers,
            normed,
            scales,
            pooled,
            probabilities,
        }
    }

    fn backward(&mut self, forward: &Forward, labels: &[usize], balance: f32, scale: f32) {
        let store = &mut self.store;
        let mut dlogits = forward.probabilities.clone();
        for (row, &label) in dlogits.chunks_exact_mut(CLASSES).zip(labels) {
            row[label] -= 1.0;
            row.iter_mut()
                .for_each(|d| *d *= scale / labels.len() as f32);
        }
        add_rows(store.gradient(&self.head_bias), &dlogits);
        let dhead = store.gradient(&self.head);
        add_outer(dhead, &forward.pooled, &dlogits, DIM, CLASSES);
        let mut dpooled = vec![0.0; forward.pooled.len()];
        let head = store.value(&self.head);
        add_product_transposed(&mut dpooled, &dlogits, head, DIM, CLASSES);
        let mut dnormed = vec![0.0; forward.normed.len()];
        add_to_tokens(&mut dnormed, &dpooled);
        let mut dh = vec![0.0; dnormed.len()];
        let (normed, scales) = (&forward.normed, &forward.scales);
        add_normalize_gradient(&mut dh, normed, scales, &dnormed, DIM);

        for (layer, forward) in self.layers.iter().zip(&forward.layers).rev() {
            let dnormed = layer.moe.backward(store, &forward.routed, &dh, balance);
            let (normed, scales) = (&forward.normed, &forward.scales);
            add_normalize_gradient(&mut dh, normed, scales, &dnormed, DIM);
            let mut dshift = vec![0.0; forward.means.len()];
            for (dshift, dh) in dshift
                .chunks_exact_mut(DIM)
                .zip(dh.chunks_exact(PATCHES * DIM))
            {
                add_rows(dshift, dh);
            }
            add_outer(
                store.gradient(&layer.mix),
                &forward.means,
                &dshift,
                DIM,
                DIM,
            );
            let mut dmeans = vec![0.0; dshift.len()];
            let mix = store.value(&layer.mix);
            add_product_transposed(&mut dmeans, &dshift, mix, DIM, DIM);
            add_to_tokens(&mut dh, &dmeans);
        }
        add_outer(
            store.gradient(&self.embed),
            &forward.tokens,
            &dh,
            PIXELS,
            DIM,
        );
        add_rows(store.gradient(&self.positions), &dh);
    }
}

/// The mean token of every image.
fn image_means(h: &[f32]) -> Vec<f32> {
    let mut means = vec![0.0; h.len() / PATCHES];
    for (mean, h) in means
        .chunks_exact_mut(DIM)
        .zip(h.chunks_exact(PATCHES * DIM))
    {
        add_rows(mean, h);
        mean.iter_mut().for_each(|value| *value /= PATCHES as f32);
    }
    means
}

/// The gradient of [`image_means`]: every token gets its part.
fn add_to_tokens(dh: &mut [f32], dmeans: &[f32]) {
    for (dh, dmean) in dh
        .chunks_exact_mut(PATCHES * DIM)
        .zip(dmeans.chunks_exact(DIM))
    {
        for dh in dh.chunks_exact_mut(DIM) {
            for (dh, &dmean) in dh.iter_mut().zip(dmean) {
                *dh += dmean / PATCHES as f32;
            }
        }
    }
}

fn cross_entropy(probabilities: &[f32], labels: &[usize]) -> f32 {
    let rows = probabilities.chunks_exact(CLASSES).zip(labels);
    let sum: f32 = rows
        .map(|(row, &label)| -libm::logf(row[label].max(1e-30)))
        .sum();
    sum / labels.len() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind of parameter against the slope of the loss; choices do not change under so
    /// small a step, and the fractions of the balancing loss count as constants.
    #[test]
    fn gradients_are_slopes() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let images = Images {
            patches: (0..2 * PATCHES * PIXELS)
                .map(|_| rng.next_u32() as f32 / u32::MAX as f32 - 0.5)
                .collect(),
            labels: vec![1, 7],
        };
        let sizes = Sizes {
            layers: 2,
            experts: 4,
        };
        let mut model = Model::new(sizes, 5);
        // Gates far apart, so that few tokens are about to change their choice.
        for layer in &model.layers {
            let gate = &mut model.store.values[layer.moe.gate.clone()];
            gate.iter_mut().for_each(|value| *value *= 20.0);
        }
        let balance = 0.3;
        let batch = [0, 1];
        model.train(&images, &batch, balance, 1.0);
        let loss = |model: &Model| {
            let forward = model.forward(&images, &batch);
            let routed = forward.layers.iter().map(|layer| &layer.routed);
            cross_entropy(&forward.probabilities, &images.labels)
                + balance * routed.map(Routed::balance).sum::<f32>()
        };
        let first = &model.layers[0];
        let pieces = [
            ("embed", model.embed.clone()),
            ("positions", model.positions.clone()),
            ("mix", first.mix.clone()),
            ("gate", first.moe.gate.clone()),
            ("last gate", model.layers[1].moe.gate.clone()),
            ("w1", first.moe.experts[0].w1.clone()),
            ("b1", first.moe.experts[1].b1.clone()),
            ("w2", first.moe.experts[2].w2.clone()),
            ("b2", first.moe.experts[3].b2.clone()),
            ("head", model.head.clone()),
            ("head bias", model.head_bias.clone()),
        ];
        for (name, piece) in pieces {
            // The step goes along the gradient, where the slope is its length.
            let gradient = model.store.gradients[piece.clone()].to_vec();
            let length = libm::sqrtf(gradient.iter().map(|g| g * g).sum());
            assert!(length > 1e-4, "{name}: {length}");
            let values = model.store.values.clone();
            let mut shifted = |by: f32| {
                model.store.values.copy_from_slice(&values);
                let targets = &mut model.store.values[piece.clone()];
                for (value, g) in targets.iter_mut().zip(&gradient) {
                    *value += by * g / length;
                }
                loss(&model)
            };
            let by = 5e-4;
            let slope = (shifted(by) - shifted(-by)) / (2.0 * by);
            model.store.values.copy_from_slice(&values);
            let ratio = slope / length;
            assert!((0.95..1.05).contains(&ratio), "{name}: {ratio}");
        }
    }
}
