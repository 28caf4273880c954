//! The layer from its definitions (Sections 2 and 11 of the specification): scalar loops in FP64,
//! one token and one expert at a time, no buffers, no ranks but as owners of tokens.

use crate::inputs::{ExpertWeights, Inputs, Routing};
use moeplan_sim::spec::{Gate, ResolvedLayer};

/// What the layer gives in FP64; gradients are those of
/// `sum(output · output_gradient) + balance_weight · balance_loss`, over all ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct Oracle {
    /// (T, D) a rank.
    pub output: Vec<Vec<f64>>,
    /// (T, k) a rank.
    pub ids: Vec<Vec<usize>>,
    /// (T, k) a rank: factor of each choice.
    pub factors: Vec<Vec<f64>>,
    /// (T, k) a rank: whether the copy found a slot.
    pub kept: Vec<Vec<bool>>,
    /// Of each rank.
    pub balance_loss: Vec<f64>,
    /// (T, D) a rank.
    pub token_gradient: Vec<Vec<f64>>,
    /// As the gate weights, a rank: they are copies that data parallelism sums elsewhere.
    pub gate_gradient: Vec<Vec<f64>>,
    /// Each expert's W1 (D,H), b1, W2 (H,D), b2.
    pub expert_gradients: Vec<[Vec<f64>; 4]>,
}

/// Weights of a cosine gate.
#[derive(Debug, Clone, PartialEq)]
pub struct CosineGate {
    /// P, 256 in the authors' code.
    pub channels: usize,
    /// (D, P).
    pub projection: Vec<f64>,
    /// (P, E).
    pub experts: Vec<f64>,
    /// Its exponential, at most 100, multiplies the cosines.
    pub temperature: f64,
}

/// Gradients of a cosine gate's weights and of the token.
#[derive(Debug, Clone, PartialEq)]
pub struct CosineGradient {
    /// (D).
    pub token: Vec<f64>,
    /// (D, P).
    pub projection: Vec<f64>,
    /// (P, E).
    pub experts: Vec<f64>,
    /// Scalar.
    pub temperature: f64,
}

/// Length of a vector, as PyTorch's `normalize` divides by it.
fn norm(values: &[f64]) -> f64 {
    let squares: f64 = values.iter().map(|value| value * value).sum();
    squares.sqrt().max(1e-12)
}

/// The weights of a gate.
#[derive(Debug, Clone, PartialEq)]
enum GateWeights {
    /// (D, E).
    Linear(Vec<f64>),
    Cosine(CosineGate),
}

impl GateWeights {
    fn new(layer: &ResolvedLayer, weights: &[f32]) -> GateWeights {
        let weights = wide(weights);
        match layer.spec.gate {
            Gate::Linear => GateWeights::Linear(weights),
            Gate::Cosine { projection_dim } => {
                let projection = (layer.spec.model_dim * projection_dim) as usize;
                let last = weights.len() - 1;
                GateWeights::Cosine(CosineGate {
                    channels: projection_dim as usize,
                    projection: weights[..projection].to_vec(),
                    experts: weights[projection..last].to_vec(),
                    temperature: weights[last],
                })
            }
        }
    }

    fn logits(&self, token: &[f64]) -> Vec<f64> {
        match self {
            GateWeights::Cosine(gate) => gate.logits(token),
            GateWeights::Linear(weight) => {
                let experts = weight.len() / token.len();
                let logit = |e: usize| -> f64 {
                    let terms = token.iter().enumerate();
                    terms.map(|(d, x)| x * weight[d * experts + e]).sum()
                };
                (0..experts).map(logit).collect()
            }
        }
    }

    /// Adds the gradients of `sum(logits · upstream)` to those of the token and the weights.
    fn backward(&self, token: &[f64], upstream: &[f64], dx: &mut [f64], into: &mut [f64]) {
        let (by_token, by_weights) = match self {
            GateWeights::Cosine(gate) => {
                let by = gate.gradient(token, upstream);
                let weights = [by.projection, by.experts, vec![by.temperature]].concat();
                (by.token, weights)
            }
            GateWeights::Linear(weight) => {
                let rows = weight.chunks(upstream.len());
                let product = |row: &[f64]| row.iter().zip(upstream).map(|(w, g)| w * g).sum();
                let outer = token
                    .iter()
                    .flat_map(|x| upstream.iter().map(move |g| x * g));
                (rows.map(product).collect(), outer.collect())
            }
        };
        dx.iter_mut().zip(&by_token).for_each(|(sum, g)| *sum += g);
        let sums = into.iter_mut().zip(&by_weights);
        sums.for_each(|(sum, g)| *sum += g);
    }
}

impl CosineGate {
    fn scale(&self) -> f64 {
        self.temperature.min(100.0_f64.ln()).exp()
    }

    /// Token and experts in the space where their angle is measured.
    fn vectors(&self, token: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
        let (p, e) = (self.channels, self.experts.len() / self.channels);
        let projected = (0..p)
            .map(|c| {
                (0..token.len())
                    .map(|d| token[d] * self.projection[d * p + c])
                    .sum()
            })
            .collect();
        let experts = (0..e).map(|e_| (0..p).map(|c| self.experts[c * e + e_]).collect());
        (projected, experts.collect())
    }

    /// Logits of one token: cosines of its projection with the experts, times the scale.
    pub fn logits(&self, token: &[f64]) -> Vec<f64> {
        let (projected, experts) = self.vectors(token);
        let length = norm(&projected);
        let cosine = |expert: &Vec<f64>| {
            let product: f64 = expert.iter().zip(&projected).map(|(a, b)| a * b).sum();
            product / (length * norm(expert))
        };
        experts
            .iter()
            .map(|expert| cosine(expert) * self.scale())
            .collect()
    }

    /// Gradients of `sum(logits · upstream)`.
    pub fn gradient(&self, token: &[f64], upstream: &[f64]) -> CosineGradient {
        let (projected, experts) = self.vectors(token);
        let (p, e) = (self.channels, experts.len());
        let length = norm(&projected);
        let logits = self.logits(token);
        let mut by_projected = vec![0.0; p];
        let mut by_experts = vec![0.0; p * e];
        for (index, expert) in experts.iter().enumerate() {
            let size = norm(expert);
            let cosine = logits[index] / self.scale();
            let weight = upstream[index] * self.scale();
            for c in 0..p {
                let (a, b) = (projected[c] / length, expert[c] / size);
                by_projected[c] += weight * (b - cosine * a) / length;
                by_experts[c * e + index] += weight * (a - cosine * b) / size;
            }
        }
        let free = self.temperature < 100.0_f64.ln();
        let by_scale: f64 = logits.iter().zip(upstream).map(|(l, g)| l * g).sum();
        CosineGradient {
            token: (0..token.len())
                .map(|d| {
                    (0..p)
                        .map(|c| by_projected[c] * self.projection[d * p + c])
                        .sum()
                })
                .collect(),
            projection: (0..token.len())
                .flat_map(|d| by_projected.iter().map(move |g| g * token[d]))
                .collect(),
            experts: by_experts,
            temperature: if free { by_scale } else { 0.0 },
        }
    }
}

/// Softmax of one row.
pub fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.iter().map(|value| value / sum).collect()
}

/// The `k` best experts, best first; of equals the lower id.
pub fn top_k(probabilities: &[f64], k: usize) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..probabilities.len()).collect();
    ids.sort_by(|&a, &b| {
        probabilities[b]
            .total_cmp(&probabilities[a])
            .then(a.cmp(&b))
    });
    ids.truncate(k);
    ids
}

/// Which copies find a slot: all first choices take slots before all second ones, tokens in order,
/// or by their best probability under batch-prioritized routing.
pub fn kept(
    ids: &[Vec<usize>],
    best: &[f64],
    limit: usize,
    experts: usize,
    prioritized: bool,
) -> Vec<bool> {
    let k = ids.first().map_or(0, Vec::len);
    let mut order: Vec<usize> = (0..ids.len()).collect();
    if prioritized {
        order.sort_by(|&a, &b| best[b].total_cmp(&best[a]).then(a.cmp(&b)));
    }
    let mut queue = vec![0; experts];
    let mut kept = vec![false; ids.len() * k];
    for choice in 0..k {
        for &token in &order {
            let expert = ids[token][choice];
            kept[token * k + choice] = queue[expert] < limit;
            queue[expert] += 1;
        }
    }
    kept
}

/// One expert's weights in FP64.
struct Expert {
    up: Vec<f64>,
    up_bias: Vec<f64>,
    down: Vec<f64>,
    down_bias: Vec<f64>,
}

impl Expert {
    fn new(weights: &ExpertWeights) -> Expert {
        Expert {
            up: wide(&weights.up),
            up_bias: wide(&weights.up_bias),
            down: wide(&weights.down),
            down_bias: wide(&weights.down_bias),
        }
    }

    /// Hidden activation and output of one token: `relu(x·W1 + b1)·W2 + b2`.
    fn forward(&self, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (d, h) = (x.len(), self.up_bias.len());
        let hidden: Vec<f64> = (0..h)
            .map(|j| {
                let sum: f64 = (0..d).map(|i| x[i] * self.up[i * h + j]).sum();
                (sum + self.up_bias[j]).max(0.0)
            })
            .collect();
        let output = (0..d)
            .map(|i| {
                let sum: f64 = (0..h).map(|j| hidden[j] * self.down[j * d + i]).sum();
                sum + self.down_bias[i]
            })
            .collect();
        (hidden, output)
    }

    /// Adds the gradients of one token; returns that of its input.
    fn backward(
        &self,
        x: &[f64],
        hidden: &[f64],
        dy: &[f64],
        into: &mut [Vec<f64>; 4],
    ) -> Vec<f64> {
        let (d, h) = (x.len(), hidden.len());
        let mut dh = vec![0.0; h];
        for j in 0..h {
            for i in 0..d {
                into[2][j * d + i] += hidden[j] * dy[i];
                dh[j] += dy[i] * self.down[j * d + i];
            }
            if hidden[j] <= 0.0 {
                dh[j] = 0.0;
            }
            into[1][j] += dh[j];
        }
        for i in 0..d {
            into[3][i] += dy[i];
            for j in 0..h {
                into[0][i * h + j] += x[i] * dh[j];
            }
        }
        (0..d)
            .map(|i| (0..h).map(|j| dh[j] * self.up[i * h + j]).sum())
            .collect()
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// The layer on `inputs`, where an expert accepts `limit` copies from each rank.
pub fn layer(layer: &ResolvedLayer, inputs: &Inputs, limit: usize) -> Oracle {
    let (d, h) = (
        layer.spec.model_dim as usize,
        layer.spec.hidden_dim as usize,
    );
    let (e, k) = (layer.num_experts as usize, layer.spec.top_k as usize);
    let experts: Vec<Expert> = inputs.experts.iter().map(Expert::new).collect();
    let gate = GateWeights::new(layer, &inputs.gate);
    let zero = || {
        [
            vec![0.0; d * h],
            vec![0.0; h],
            vec![0.0; h * d],
            vec![0.0; d],
        ]
    };
    let mut result = Oracle {
        output: Vec::new(),
        ids: Vec::new(),
        factors: Vec::new(),
        kept: Vec::new(),
        balance_loss: Vec::new(),
        token_gradient: Vec::new(),
        gate_gradient: Vec::new(),
        expert_gradients: (0..e).map(|_| zero()).collect(),
    };
    for rank in 0..layer.world_size as usize {
        let tokens: Vec<Vec<f64>> = inputs.tokens[rank].chunks(d).map(wide).collect();
        let upstream: Vec<Vec<f64>> = inputs.output_gradient[rank].chunks(d).map(wide).collect();
        let t = tokens.len();
        let noise = inputs.noise(rank).map(wide);
        let probabilities: Vec<Vec<f64>> = tokens
            .iter()
            .enumerate()
            .map(|(token, x)| {
                let mut logits = gate.logits(x);
                if let Some(noise) = &noise {
                    let of_token = &noise[token * e..(token + 1) * e];
                    logits.iter_mut().zip(of_token).for_each(|(l, n)| *l += n);
                }
                softmax(&logits)
            })
            .collect();
        let (ids, recorded): (Vec<Vec<usize>>, Option<Vec<f64>>) = match &inputs.routing {
            Routing::Gate => (probabilities.iter().map(|p| top_k(p, k)).collect(), None),
            Routing::Forced(step) => {
                let ids = step.ids(rank).chunks(k);
                let ids = ids.map(|ids| ids.iter().map(|&id| id as usize).collect());
                (ids.collect(), step.scores(rank).map(wide))
            }
        };
        let best: Vec<f64> = probabilities
            .iter()
            .map(|p| p.iter().copied().fold(0.0, f64::max))
            .collect();
        let kept = kept(&ids, &best, limit, e, inputs.prioritized);
        let own: Vec<f64> = ids
            .iter()
            .zip(&probabilities)
            .flat_map(|(ids, p)| {
                let sum: f64 = ids.iter().map(|&id| p[id]).sum();
                let divisor = if k > 1 { sum } else { 1.0 };
                ids.iter().map(move |&id| p[id] / divisor)
            })
            .collect();
        let factors = recorded.clone().unwrap_or(own);

        // Balancing loss on first choices: E · sum_e mean_t(p_te) · fraction_e.
        let fraction: Vec<f64> = (0..e)
            .map(|e_| ids.iter().filter(|ids| ids[0] == e_).count() as f64 / t as f64)
            .collect();
        let mean = |e_: usize| probabilities.iter().map(|p| p[e_]).sum::<f64>() / t as f64;
        result
            .balance_loss
            .push((0..e).map(|e_| e as f64 * mean(e_) * fraction[e_]).sum());

        let mut output = Vec::with_capacity(t * d);
        let mut token_gradient = Vec::with_capacity(t * d);
        let mut gate_gradient = vec![0.0; inputs.gate.len()];
        for token in 0..t {
            let (x, dy) = (&tokens[token], &upstream[token]);
            let mut y = vec![0.0; d];
            let mut dx = vec![0.0; d];
            let mut by_factor = vec![0.0; k];
            for choice in (0..k).filter(|choice| kept[token * k + choice]) {
                let (id, factor) = (ids[token][choice], factors[token * k + choice]);
                let (hidden, out) = experts[id].forward(x);
                let weighted: Vec<f64> = dy.iter().map(|g| g * factor).collect();
                let back =
                    experts[id].backward(x, &hidden, &weighted, &mut result.expert_gradients[id]);
                for i in 0..d {
                    y[i] += factor * out[i];
                    dx[i] += back[i];
                    by_factor[choice] += dy[i] * out[i];
                }
            }
            let p = &probabilities[token];
            let weight = f64::from(inputs.balance_weight) * e as f64 / t as f64;
            let mut by_probability: Vec<f64> = fraction.iter().map(|f| weight * f).collect();
            if recorded.is_none() {
                let sum: f64 = ids[token].iter().map(|&id| p[id]).sum();
                for choice in 0..k {
                    if k == 1 {
                        by_probability[ids[token][0]] += by_factor[0];
                        continue;
                    }
                    // d(p_j / S)/dp_i = [i = j]/S - p_j/S^2.
                    let id = ids[token][choice];
                    by_probability[id] += by_factor[choice] / sum;
                    for other in &ids[token] {
                        by_probability[*other] -= by_factor[choice] * p[id] / (sum * sum);
                    }
                }
            }
            let inner: f64 = p.iter().zip(&by_probability).map(|(p, g)| p * g).sum();
            let by_logit = p.iter().zip(&by_probability);
            let by_logit: Vec<f64> = by_logit.map(|(p, by)| p * (by - inner)).collect();
            gate.backward(x, &by_logit, &mut dx, &mut gate_gradient);
            output.extend(y);
            token_gradient.extend(dx);
        }
        result.output.push(output);
        result.ids.push(ids.concat());
        result.factors.push(factors);
        result.kept.push(kept);
        result.token_gradient.push(token_gradient);
        result.gate_gradient.push(gate_gradient);
    }
    result
}
