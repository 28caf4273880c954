//! The classifier around the MoE layers, its gradients and Adam.
//!
//! Tokens are embedded, with a position each; then, layer by layer, every token gets a projection of
//! what it sees of other tokens and the output of a MoE layer. In images it sees the mean of its
//! image, and in the end the mean of the tokens is classified. In texts layer `l` sees the token
//! `2^l` before, and in the end every token says which comes next.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::data::{Format, Items};
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
    pub(crate) top_k: usize,
}

struct Layer {
    mix: Range<usize>,
    moe: Moe,
}

pub(crate) struct Model {
    format: Format,
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
    /// What the head sees: `[items, DIM]` or `[items, tokens, DIM]`.
    pooled: Vec<f32>,
    probabilities: Vec<f32>,
}

struct LayerForward {
    /// What tokens see of others: `[items, DIM]` or `[items, tokens, DIM]`.
    seen: Vec<f32>,
    normed: Vec<f32>,
    scales: Vec<f32>,
    routed: Routed,
}

impl Model {
    pub(crate) fn new(format: Format, sizes: Sizes, seed: u64) -> Self {
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
        let numbers = if format.per_token {
            // One number of a token is 1, the others 0.
            1
        } else {
            format.features
        };
        let embed = piece(format.features * DIM, by_root(numbers));
        let positions = piece(
            format.tokens * DIM,
            if format.per_token { 0.1 } else { 0.5 },
        );
        let layers = (0..sizes.layers)
            .map(|_| Layer {
                mix: piece(DIM * DIM, 0.5 * by_root(DIM)),
                moe: Moe {
                    top_k: sizes.top_k,
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
        let head = piece(DIM * format.classes, 0.1 * by_root(DIM));
        let head_bias = piece(format.classes, 0.0);
        let count = values.len();
        Self {
            format,
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
        items: &Items,
        batch: &[usize],
        balance: f32,
        scale: f32,
    ) -> Trained {
        let forward = self.forward(items, batch);
        let labels = labels(items, batch);
        let loss = cross_entropy(&forward.probabilities, &labels);
        self.backward(&forward, &labels, balance * scale, scale);
        let layers = || forward.layers.iter().map(|layer| &layer.routed);
        Trained {
            loss,
            balance: layers().map(Routed::balance).sum::<f32>() / self.layers.len() as f32,
            routing: layers().map(Routed::counts).collect(),
        }
    }

    /// The part of the answers that are right.
    pub(crate) fn accuracy(&self, items: &Items) -> f32 {
        let all: Vec<usize> = (0..items.len()).collect();
        let (mut right, mut count) = (0, 0);
        for batch in all.chunks(64) {
            let forward = self.forward(items, batch);
            let rows = forward.probabilities.chunks_exact(self.format.classes);
            let labels = labels(items, batch);
            count += labels.len();
            let best =
                |row: &[f32]| (0..row.len()).fold(0, |a, b| if row[b] > row[a] { b } else { a });
            right += rows
                .zip(labels)
                .filter(|(row, label)| best(row) == *label)
                .count();
        }
        right as f32 / count as f32
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

    fn forward(&self, items: &Items, batch: &[usize]) -> Forward {
        let store = &self.store;
        let Format {
            tokens,
            features,
            classes,
            per_token,
        } = self.format;
        let mut inputs = Vec::with_capacity(batch.len() * tokens * features);
        batch
            .iter()
            .for_each(|&item| items.gather(item, &mut inputs));
        let mut h = store.value(&self.positions).repeat(batch.len());
        add_product(&mut h, &inputs, store.value(&self.embed), features, DIM);
        let mut layers = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let seen = self.see(&h, index);
            let mut shift = vec![0.0; seen.len()];
            add_product(&mut shift, &seen, store.value(&layer.mix), DIM, DIM);
            for (h, shift) in h
                .chunks_exact_mut(h_per_seen(self.format))
                .zip(shift.chunks_exact(DIM))
            {
                for h in h.chunks_exact_mut(DIM) {
                    add_rows(h, shift);
                }
            }
            let (normed, scales) = normalize(&h, DIM);
            let routed = layer.moe.forward(store, normed.clone(), &mut h);
            layers.push(LayerForward {
                seen,
                normed,
                scales,
                routed,
            });
        }
        let (normed, scales) = normalize(&h, DIM);
        let pooled = if per_token {
            normed.clone()
        } else {
            item_means(&normed, tokens)
        };
        let mut probabilities = store.value(&self.head_bias).repeat(pooled.len() / DIM);
        let head = store.value(&self.head);
        add_product(&mut probabilities, &pooled, head, DIM, classes);
        softmax(&mut probabilities, classes);
        Forward {
            tokens: inputs,
            layers,
            normed,
            scales,
            pooled,
            probabilities,
        }
    }

    /// What tokens see of others in layer `index`.
    fn see(&self, h: &[f32], index: usize) -> Vec<f32> {
        if self.format.per_token {
            earlier(h, self.format.tokens, 1 << index)
        } else {
            item_means(h, self.format.tokens)
        }
    }

    fn backward(&mut self, forward: &Forward, labels: &[usize], balance: f32, scale: f32) {
        let Format {
            tokens,
            features,
            classes,
            per_token,
        } = self.format;
        let store = &mut self.store;
        let mut dlogits = forward.probabilities.clone();
        for (row, &label) in dlogits.chunks_exact_mut(classes).zip(labels) {
            row[label] -= 1.0;
            row.iter_mut()
                .for_each(|d| *d *= scale / labels.len() as f32);
        }
        add_rows(store.gradient(&self.head_bias), &dlogits);
        let dhead = store.gradient(&self.head);
        add_outer(dhead, &forward.pooled, &dlogits, DIM, classes);
        let mut dpooled = vec![0.0; forward.pooled.len()];
        let head = store.value(&self.head);
        add_product_transposed(&mut dpooled, &dlogits, head, DIM, classes);
        let dnormed = if per_token {
            dpooled
        } else {
            let mut dnormed = vec![0.0; forward.normed.len()];
            add_to_tokens(&mut dnormed, &dpooled, tokens);
            dnormed
        };
        let mut dh = vec![0.0; dnormed.len()];
        let (normed, scales) = (&forward.normed, &forward.scales);
        add_normalize_gradient(&mut dh, normed, scales, &dnormed, DIM);

        for (index, (layer, forward)) in self.layers.iter().zip(&forward.layers).enumerate().rev() {
            let dnormed = layer.moe.backward(store, &forward.routed, &dh, balance);
            let (normed, scales) = (&forward.normed, &forward.scales);
            add_normalize_gradient(&mut dh, normed, scales, &dnormed, DIM);
            let mut dshift = vec![0.0; forward.seen.len()];
            for (dshift, dh) in dshift
                .chunks_exact_mut(DIM)
                .zip(dh.chunks_exact(h_per_seen(self.format)))
            {
                add_rows(dshift, dh);
            }
            add_outer(store.gradient(&layer.mix), &forward.seen, &dshift, DIM, DIM);
            let mut dseen = vec![0.0; dshift.len()];
            let mix = store.value(&layer.mix);
            add_product_transposed(&mut dseen, &dshift, mix, DIM, DIM);
            if per_token {
                add_to_earlier(&mut dh, &dseen, tokens, 1 << index);
            } else {
                add_to_tokens(&mut dh, &dseen, tokens);
            }
        }
        add_outer(
            store.gradient(&self.embed),
            &forward.tokens,
            &dh,
            features,
            DIM,
        );
        add_rows(store.gradient(&self.positions), &dh);
    }
}

/// Numbers of hidden state that get the projection of one seen vector.
fn h_per_seen(format: Format) -> usize {
    if format.per_token {
        DIM
    } else {
        format.tokens * DIM
    }
}

fn labels(items: &Items, batch: &[usize]) -> Vec<usize> {
    let labels = batch.iter().flat_map(|&item| items.labels(item));
    labels.copied().collect()
}

/// The mean token of every item.
fn item_means(h: &[f32], tokens: usize) -> Vec<f32> {
    let mut means = vec![0.0; h.len() / tokens];
    for (mean, h) in means
        .chunks_exact_mut(DIM)
        .zip(h.chunks_exact(tokens * DIM))
    {
        add_rows(mean, h);
        mean.iter_mut().for_each(|value| *value /= tokens as f32);
    }
    means
}

/// The gradient of [`item_means`]: every token gets its part.
fn add_to_tokens(dh: &mut [f32], dmeans: &[f32], tokens: usize) {
    for (dh, dmean) in dh
        .chunks_exact_mut(tokens * DIM)
        .zip(dmeans.chunks_exact(DIM))
    {
        for dh in dh.chunks_exact_mut(DIM) {
            for (dh, &dmean) in dh.iter_mut().zip(dmean) {
                *dh += dmean / tokens as f32;
            }
        }
    }
}

/// Every token as it is `back` tokens later in its item; zeros before the first.
fn earlier(h: &[f32], tokens: usize, back: usize) -> Vec<f32> {
    let mut seen = vec![0.0; h.len()];
    let skip = back.min(tokens) * DIM;
    for (seen, h) in seen
        .chunks_exact_mut(tokens * DIM)
        .zip(h.chunks_exact(tokens * DIM))
    {
        seen[skip..].copy_from_slice(&h[..tokens * DIM - skip]);
    }
    seen
}

/// The gradient of [`earlier`].
fn add_to_earlier(dh: &mut [f32], dseen: &[f32], tokens: usize, back: usize) {
    let skip = back.min(tokens) * DIM;
    for (dh, dseen) in dh
        .chunks_exact_mut(tokens * DIM)
        .zip(dseen.chunks_exact(tokens * DIM))
    {
        add_rows(&mut dh[..tokens * DIM - skip], &dseen[skip..]);
    }
}

fn cross_entropy(probabilities: &[f32], labels: &[usize]) -> f32 {
    let classes = probabilities.len() / labels.len();
    let rows = probabilities.chunks_exact(classes).zip(labels);
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
    fn check_gradients(per_token: bool, top_k: usize) {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let format = Format {
            tokens: 16,
            features: 16,
            classes: 10,
            per_token,
        };
        let answers = match per_token {
            true => (0..32).map(|token| token % 10).collect(),
            false => vec![1, 7],
        };
        let images = Items::noise(format, answers, &mut rng);
        let sizes = Sizes {
            layers: 2,
            experts: 4,
            top_k,
        };
        let mut model = Model::new(format, sizes, 5);
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
            cross_entropy(&forward.probabilities, &labels(&images, &batch))
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
            // Large enough that the loss, of 24 bits, changes by a hundred of its last ones;
            // small enough that few tokens change their choice or a hidden unit its side.
            let by = (2e-5 / length).clamp(5e-4, 1e-2);
            let slope = (shifted(by) - shifted(-by)) / (2.0 * by);
            model.store.values.copy_from_slice(&values);
            let ratio = slope / length;
            assert!(
                (0.95..1.05).contains(&ratio),
                "{name}: {ratio} ({per_token} {top_k})"
            );
        }
    }

    #[test]
    fn gradients_are_slopes() {
        for per_token in [false, true] {
            for top_k in [1, 2] {
                check_gradients(per_token, top_k);
            }
        }
    }
}
