//! One MoE layer: a top-1 or top-2 softmax gate and feed-forward experts, with its gradients.

use std::ops::Range;

use crate::math::{Store, add_outer, add_product, add_product_transposed, add_rows, dot, softmax};
use crate::model::{DIM, HIDDEN};

/// Where the parameters of a layer are.
pub(crate) struct Moe {
    /// 1, as in Switch (the share of the expert is its gate), or 2, as in GShard (the shares of the
    /// two sum to one).
    pub(crate) top_k: usize,
    pub(crate) gate: Range<usize>,
    pub(crate) experts: Vec<Expert>,
}

/// Where the parameters of an expert are.
pub(crate) struct Expert {
    pub(crate) w1: Range<usize>,
    pub(crate) b1: Range<usize>,
    pub(crate) w2: Range<usize>,
    pub(crate) b2: Range<usize>,
}

/// What the backward pass needs of the forward pass.
pub(crate) struct Routed {
    inputs: Vec<f32>,
    /// `[tokens, experts]`, after the softmax.
    gates: Vec<f32>,
    /// The two experts of every token, the better one first, with their shares.
    choices: Vec<[(usize, f32); 2]>,
    /// Of every expert the tokens (and which of their choices it is).
    queues: Vec<Vec<(usize, usize)>>,
    /// Of every expert the hidden activations and outputs, row by row as in its queue.
    hidden: Vec<Vec<f32>>,
    outputs: Vec<Vec<f32>>,
    /// Share of the tokens whose first choice an expert is.
    fractions: Vec<f32>,
}

impl Routed {
    /// Copies sent to every expert.
    pub(crate) fn counts(&self) -> Vec<u32> {
        self.queues.iter().map(|queue| queue.len() as u32).collect()
    }

    /// `E * sum_e mean_gate_e * fraction_e`: 1 when balanced.
    pub(crate) fn balance(&self) -> f32 {
        let experts = self.fractions.len();
        let tokens = self.choices.len() as f32;
        let mut means = vec![0.0; experts];
        add_rows(&mut means, &self.gates);
        experts as f32 * dot(&means, &self.fractions) / tokens
    }
}

impl Moe {
    /// Adds the output of the layer to `y`; both are `[tokens, DIM]`.
    pub(crate) fn forward(&self, store: &Store, inputs: Vec<f32>, y: &mut [f32]) -> Routed {
        let experts = self.experts.len();
        let tokens = inputs.len() / DIM;
        let mut gates = vec![0.0; tokens * experts];
        add_product(&mut gates, &inputs, store.value(&self.gate), DIM, experts);
        softmax(&mut gates, experts);

        let mut queues = vec![Vec::new(); experts];
        let mut fractions = vec![0.0; experts];
        let mut choices = Vec::with_capacity(tokens);
        for (token, gates) in gates.chunks_exact(experts).enumerate() {
            let (first, second) = top_2(gates);
            let sum = match self.top_k {
                1 => 1.0,
                _ => gates[first] + gates[second],
            };
            choices.push([(first, gates[first] / sum), (second, gates[second] / sum)]);
            queues[first].push((token, 0));
            if self.top_k > 1 {
                queues[second].push((token, 1));
            }
            fractions[first] += 1.0 / tokens as f32;
        }

        let mut all_hidden = Vec::with_capacity(experts);
        let mut all_outputs = Vec::with_capacity(experts);
        for (expert, queue) in self.experts.iter().zip(&queues) {
            let rows = gather(&inputs, queue);
            let mut hidden = store.value(&expert.b1).repeat(queue.len());
            add_product(&mut hidden, &rows, store.value(&expert.w1), DIM, HIDDEN);
            hidden.iter_mut().for_each(|value| *value = value.max(0.0));
            let mut outputs = store.value(&expert.b2).repeat(queue.len());
            add_product(&mut outputs, &hidden, store.value(&expert.w2), HIDDEN, DIM);
            for (&(token, choice), output) in queue.iter().zip(outputs.chunks_exact(DIM)) {
                let share = choices[token][choice].1;
                for (y, &output) in y[token * DIM..][..DIM].iter_mut().zip(output) {
                    *y += share * output;
                }
            }
            all_hidden.push(hidden);
            all_outputs.push(outputs);
        }
        Routed {
            inputs,
            gates,
            choices,
            queues,
            hidden: all_hidden,
            outputs: all_outputs,
            fractions,
        }
    }

    /// Adds to the gradients of the parameters; returns that of the inputs. `balance` is the
    /// weight of the balancing loss in the total.
    pub(crate) fn backward(
        &self,
        store: &mut Store,
        routed: &Routed,
        dy: &[f32],
        balance: f32,
    ) -> Vec<f32> {
        let experts = self.experts.len();
        let tokens = routed.choices.len();
        let mut dinputs = vec![0.0; tokens * DIM];
        let mut dshares = vec![[0.0; 2]; tokens];
        for (e, expert) in self.experts.iter().enumerate() {
            let queue = &routed.queues[e];
            let mut doutputs = Vec::with_capacity(queue.len() * DIM);
            for (&(token, choice), output) in queue.iter().zip(routed.outputs[e].chunks_exact(DIM))
            {
                let dy = &dy[token * DIM..][..DIM];
                dshares[token][choice] = dot(dy, output);
                let share = routed.choices[token][choice].1;
                doutputs.extend(dy.iter().map(|&dy| share * dy));
            }
            let hidden = &routed.hidden[e];
            add_rows(store.gradient(&expert.b2), &doutputs);
            add_outer(store.gradient(&expert.w2), hidden, &doutputs, HIDDEN, DIM);
            let mut dhidden = vec![0.0; hidden.len()];
            let w2 = store.value(&expert.w2);
            add_product_transposed(&mut dhidden, &doutputs, w2, HIDDEN, DIM);
            for (dhidden, &hidden) in dhidden.iter_mut().zip(hidden) {
                *dhidden = if hidden > 0.0 { *dhidden } else { 0.0 };
            }
            let rows = gather(&routed.inputs, queue);
            add_rows(store.gradient(&expert.b1), &dhidden);
            add_outer(store.gradient(&expert.w1), &rows, &dhidden, DIM, HIDDEN);
            let mut drows = vec![0.0; rows.len()];
            let w1 = store.value(&expert.w1);
            add_product_transposed(&mut drows, &dhidden, w1, DIM, HIDDEN);
            for (&(token, _), drow) in queue.iter().zip(drows.chunks_exact(DIM)) {
                for (dinput, &drow) in dinputs[token * DIM..][..DIM].iter_mut().zip(drow) {
                    *dinput += drow;
                }
            }
        }

        let mut dlogits = Vec::with_capacity(tokens * experts);
        let pressure: Vec<f32> = routed
            .fractions
            .iter()
            .map(|&fraction| balance * experts as f32 * fraction / tokens as f32)
            .collect();
        for (token, gates) in routed.gates.chunks_exact(experts).enumerate() {
            let [(first, share_1), (second, share_2)] = routed.choices[token];
            let [d1, d2] = dshares[token];
            let sum = gates[first] + gates[second];
            let mut dgates = pressure.clone();
            if self.top_k > 1 {
                dgates[first] += (d1 - d2) * share_2 / sum;
                dgates[second] += (d2 - d1) * share_1 / sum;
            } else {
                dgates[first] += d1;
            }
            let mean = dot(gates, &dgates);
            dlogits.extend(gates.iter().zip(&dgates).map(|(&g, &dg)| g * (dg - mean)));
        }
        add_outer(
            store.gradient(&self.gate),
            &routed.inputs,
            &dlogits,
            DIM,
            experts,
        );
        let gate = store.value(&self.gate);
        add_product_transposed(&mut dinputs, &dlogits, gate, DIM, experts);
        dinputs
    }
}

/// The largest and the second largest; of equals the first.
fn top_2(gates: &[f32]) -> (usize, usize) {
    let (mut first, mut second) = if gates[1] > gates[0] { (1, 0) } else { (0, 1) };
    for (expert, &gate) in gates.iter().enumerate().skip(2) {
        if gate > gates[first] {
            second = first;
            first = expert;
        } else if gate > gates[second] {
            second = expert;
        }
    }
    (first, second)
}

fn gather(rows: &[f32], queue: &[(usize, usize)]) -> Vec<f32> {
    let rows = queue.iter().map(|&(token, _)| &rows[token * DIM..][..DIM]);
    rows.flatten().copied().collect()
}
