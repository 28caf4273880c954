//! Steps of the gate: logits, softmax, choice, slots; and their backward.

use super::cosine::{Cosine, Part};
use super::memory::Extra;
use super::plan::{Planner, Step, Steps, plain};
use crate::ExecError;
use crate::cosine::CosineLayout;
use crate::inputs::Routing;
use moeplan_kernels::{
    CastFromFloat, CastToFloat, GateChosen, GateGradient, GateSoftmax, GateTopK, In, Out, Product,
    Real, SLOT_TILE, SlotAssign, SlotCount, SlotScan, slot_tiles,
};
use moeplan_sim::ir::BufferId;

/// Gradient of the balancing loss by probability, the same for every token: `E · fraction_e / T`.
pub(super) fn balance(ids: &[u32], tokens: usize, experts: usize, top_k: usize) -> Vec<f32> {
    let mut gradient = vec![0.0; experts];
    for choices in ids.chunks_exact(top_k) {
        gradient[choices[0] as usize] += experts as f32 / (tokens * tokens) as f32;
    }
    gradient
}

/// A product of matrices whose rows are adjacent.
pub(super) fn product(
    shape: [usize; 3],
    addresses: [u64; 3],
    transposed: [bool; 2],
    accumulate: bool,
) -> Product {
    let [m, n, k] = shape.map(|size| size as i64);
    let strides = |transposed: bool, rows: i64, columns: i64| match transposed {
        true => (1, rows),
        false => (columns, 1),
    };
    let (a, b) = (strides(transposed[0], m, k), strides(transposed[1], k, n));
    Product {
        a: addresses[0] as i64,
        b: addresses[1] as i64,
        c: addresses[2] as i64,
        m,
        n,
        k,
        a_row_stride: a.0,
        a_column_stride: a.1,
        b_row_stride: b.0,
        b_column_stride: b.1,
        c_row_stride: n,
        accumulate: i64::from(accumulate),
    }
}

/// Logits (T, E) of `tokens` (T, D), of a linear gate of `weight` (D, E) or of a cosine gate.
pub(super) fn logits(
    [t, d, e]: [usize; 3],
    cosine: Option<Cosine>,
    [tokens, weight, scores]: [u64; 3],
) -> Vec<Part> {
    let addresses = [tokens, weight, scores];
    match cosine {
        None => vec![Part::Multiply(product(
            [t, e, d],
            addresses,
            [false; 2],
            false,
        ))],
        Some(gate) => gate.logits(tokens, scores).to_vec(),
    }
}

impl Planner<'_> {
    pub(super) fn gate(
        &mut self,
        rank: usize,
        buffers: [BufferId; 3],
        cosine: Option<(CosineLayout, BufferId)>,
        steps: &mut Steps,
    ) -> Result<(), ExecError> {
        let job = self.job;
        let geometry = &job.lowered.geometry;
        let (t, e, k) = (geometry.tokens, geometry.experts, geometry.top_k);
        let copies = t * k;
        let [_, weight, scores] = buffers.map(|buffer| self.at(rank, buffer));
        let tokens = self.wide_tokens(rank, buffers[0], steps)?;
        let cosine = cosine.map(|(layout, directions)| Cosine {
            layout,
            weights: weight,
            directions: self.at(rank, directions),
        });
        let shape = [t, geometry.model_dim, e];
        for part in logits(shape, cosine, [tokens, weight, scores]) {
            match part {
                Part::Multiply(product) => self.multiply(vec![product], self.gate, steps),
                Part::Launch(launch) => steps.push(Step::Launch(launch)),
            }
        }
        if let Some(noise) = job.inputs.noise(rank) {
            let from = self.table_of_4(noise.iter().map(|value| value.to_bits()));
            steps.push(plain(&CastFromFloat {
                from: In::at(from),
                to: Out::at(scores),
                count: (t * e) as i64,
                accumulate: true,
            }));
        }
        let (num_tokens, num_experts, top_k) = (t as i64, e as i32, k as i32);
        steps.push(plain(&GateSoftmax {
            logits: In::at(scores),
            scores: Out::at(scores),
            num_tokens,
            num_experts,
        }));

        let experts = self.extra(rank, Extra::Experts, copies * 4)?;
        let chosen = self.extra(rank, Extra::Chosen, copies * 4)?;
        let forced = match &job.inputs.routing {
            Routing::Gate => None,
            Routing::Forced(step) => Some((step.ids(rank), step.scores(rank))),
        };
        match forced {
            None => steps.push(plain(&GateTopK {
                scores: In::at(scores),
                experts: Out::at(experts),
                num_tokens,
                num_experts,
                top_k,
            })),
            Some((ids, _)) => {
                let from = self.table_of_4(ids.iter().copied());
                steps.push(Step::Copy {
                    to: experts,
                    from,
                    bytes: copies * 4,
                });
            }
        }
        match forced.and_then(|(_, scores)| scores) {
            None => steps.push(plain(&GateChosen {
                scores: In::at(scores),
                experts: In::at(experts),
                chosen: Out::at(chosen),
                num_tokens,
                num_experts,
                top_k,
                normalize: k > 1,
            })),
            Some(recorded) => {
                let from = self.table_of_4(recorded.iter().map(|score| score.to_bits()));
                steps.push(Step::Copy {
                    to: chosen,
                    from,
                    bytes: copies * 4,
                });
            }
        }
        self.slots(rank, scores, steps)?;

        // For the balancing loss.
        let sums = self.extra(rank, Extra::ScoreSums, e * 4)?;
        self.sum_columns(rank, scores, [t, e], sums, steps)
    }

    /// Location of every copy in its expert's queue.
    fn slots(&mut self, rank: usize, scores: u64, steps: &mut Steps) -> Result<(), ExecError> {
        let geometry = &self.job.lowered.geometry;
        let (t, e, k) = (geometry.tokens, geometry.experts, geometry.top_k);
        let copies = t * k;
        let (num_tokens, num_experts, top_k) = (t as i64, e as i32, k as i32);
        let experts = In::at(self.extra(rank, Extra::Experts, copies * 4)?);
        let order = match self.job.inputs.prioritized {
            false => None,
            true => {
                let order = self.extra(rank, Extra::Order, t * 4)?;
                steps.push(Step::Prioritize { scores, order });
                Some(In::at(order))
            }
        };
        let tiles = slot_tiles(copies as i64);
        let bytes = tiles as usize * e * 4;
        let counts = self.extra(rank, Extra::TileCounts, bytes)?;
        steps.push(Step::Zero { at: counts, bytes });
        steps.push(plain(&SlotCount {
            experts,
            order,
            counts: Out::at(counts),
            num_tokens,
            top_k,
            choices: top_k,
            num_experts,
            tile: SLOT_TILE,
        }));
        let totals = Out::at(self.extra(rank, Extra::Totals, e * 4)?);
        steps.push(plain(&SlotScan {
            counts: Out::at(counts),
            totals,
            tiles,
            num_experts,
        }));
        steps.push(plain(&SlotAssign {
            experts,
            order,
            counts: Out::at(counts),
            locations: Out::at(self.extra(rank, Extra::Locations, copies * 4)?),
            num_tokens,
            top_k,
            num_experts,
            tile: SLOT_TILE,
        }));
        Ok(())
    }

    pub(super) fn gate_gradient(
        &mut self,
        rank: usize,
        reads: [BufferId; 4],
        writes: [BufferId; 2],
        cosine: Option<(CosineLayout, [BufferId; 2])>,
        steps: &mut Steps,
    ) -> Result<(), ExecError> {
        let job = self.job;
        let geometry = &job.lowered.geometry;
        let (t, d, e, k) = (
            geometry.tokens,
            geometry.model_dim,
            geometry.experts,
            geometry.top_k,
        );
        let [choices, scores, _, weight] = reads.map(|buffer| self.at(rank, buffer));
        let [token_gradient, weight_gradient] = writes.map(|buffer| self.at(rank, buffer));
        let recorded = match &job.inputs.routing {
            Routing::Gate => false,
            Routing::Forced(step) => step.scores(rank).is_some(),
        };
        // Recorded factors are constants: no gradient reaches the gate through them.
        let choices = match recorded {
            false => choices,
            true => {
                let none = self.extra(rank, Extra::NoGradient, t * k * 4)?;
                steps.push(Step::Zero {
                    at: none,
                    bytes: t * k * 4,
                });
                none
            }
        };
        let balance = balance(job.tokens.ids(rank), t, e, k);
        let weighted = balance
            .iter()
            .map(|factor| (job.inputs.balance_weight * factor).to_bits());
        let balance = self.table_of_4(weighted.collect::<Vec<_>>().into_iter());
        let logits = self.extra(rank, Extra::LogitsGradient, t * e * 4)?;
        steps.push(plain(&GateGradient {
            scores: In::at(scores),
            experts: In::at(self.extra(rank, Extra::Experts, t * k * 4)?),
            chosen_gradient: In::at(choices),
            balance: Some(In::at(balance)),
            logits_gradient: Out::at(logits),
            num_tokens: t as i64,
            num_experts: e as i32,
            top_k: k as i32,
            normalize: k > 1,
        }));
        let tokens = self.wide_tokens(rank, reads[2], steps)?;
        if let Some((layout, [directions, scratch])) = cosine {
            let gate = Cosine {
                layout,
                weights: weight,
                directions: self.at(rank, directions),
            };
            let gradients = [token_gradient, weight_gradient];
            return self.cosine_gradient(rank, gate, [tokens, logits], scratch, gradients, steps);
        }
        let to_weight = product(
            [d, e, t],
            [tokens, logits, weight_gradient],
            [true, false],
            false,
        );
        self.multiply(vec![to_weight], self.gate, steps);
        self.add_to_tokens(rank, [t, e], [logits, weight], token_gradient, steps)
    }

    /// The rank's tokens in fp32: as they are, or cast.
    fn wide_tokens(
        &mut self,
        rank: usize,
        tokens: BufferId,
        steps: &mut Steps,
    ) -> Result<u64, ExecError> {
        let at = self.at(rank, tokens);
        if self.layer.real == Real::F32 {
            return Ok(at);
        }
        let count = self.job.lowered.geometry.tokens * self.job.lowered.geometry.model_dim;
        let wide = self.extra(rank, Extra::WideTokens, count * 4)?;
        steps.push(self.layer.launch(&CastToFloat {
            from: In::at(at),
            to: Out::at(wide),
            count: count as i64,
        }));
        Ok(wide)
    }

    /// Adds gradient (T, P) times the transpose of weight (D, P) to a gradient of tokens, by way of fp32 where that is
    /// stored in 2 bytes. What [`Self::wide_tokens`] gave is no longer valid then.
    pub(super) fn add_to_tokens(
        &mut self,
        rank: usize,
        [t, p]: [usize; 2],
        [gradient, weight]: [u64; 2],
        target: u64,
        steps: &mut Steps,
    ) -> Result<(), ExecError> {
        let d = self.job.lowered.geometry.model_dim;
        let direct = self.layer.real == Real::F32;
        let into = match direct {
            true => target,
            false => self.extra(rank, Extra::WideTokens, t * d * 4)?,
        };
        let product = product([t, d, p], [gradient, weight, into], [false, true], direct);
        self.multiply(vec![product], self.gate, steps);
        if !direct {
            steps.push(self.layer.launch(&CastFromFloat {
                from: In::at(into),
                to: Out::at(target),
                count: (t * d) as i64,
                accumulate: true,
            }));
        }
        Ok(())
    }
}
