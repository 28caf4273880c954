//! Lists that kernels walk: copies, sums, products, and the places of token copies.

use super::blas::Precision;
use super::memory::Extra;
use super::plan::{Planner, Step, Steps, plain};
use crate::ExecError;
use crate::task::{RowCopy, Slots};
use moeplan_kernels::{
    Arguments as _, CopyRun, CopyRuns, Gemm, In, Out, Product, SlotPlaces, SumRun, SumRuns,
};

/// (first element of the target, elements, addresses of the sources).
pub(super) type Sum = (i64, i64, Vec<i64>);

impl Planner<'_> {
    /// One row copy, whose rows have the layer's number type.
    pub(super) fn copy_run(&self, copy: &RowCopy, width: usize) -> CopyRun {
        let bytes = |rows: usize| (rows * width) as i64 * self.size();
        CopyRun {
            source: self.at(copy.rank, copy.buffer) as i64 + bytes(copy.from),
            at: bytes(copy.to),
            bytes: bytes(copy.rows),
        }
    }

    pub(super) fn copy(&mut self, target: u64, runs: Vec<CopyRun>, steps: &mut Steps) {
        if runs.is_empty() {
            return;
        }
        steps.push(plain(&CopyRuns {
            target: Out::at(target),
            runs: In::at(self.table(&CopyRun::table(&runs))),
            num_runs: runs.len() as i32,
            longest: runs.iter().map(|run| run.bytes).max().unwrap_or(0),
        }));
    }

    pub(super) fn sum(&mut self, target: u64, sums: &[Sum], steps: &mut Steps) {
        let (mut runs, mut addresses) = (Vec::new(), Vec::new());
        for (at, elements, sources) in sums.iter().filter(|(_, elements, _)| *elements > 0) {
            let first = addresses.len() as i64;
            runs.push(SumRun {
                at: *at,
                elements: *elements,
                first,
                sources: sources.len() as i64,
            });
            addresses.extend_from_slice(sources);
        }
        if runs.is_empty() {
            return;
        }
        steps.push(self.layer.launch(&SumRuns {
            target: Out::at(target),
            runs: In::at(self.table(&SumRun::table(&runs))),
            sources: In::at(self.table(&addresses)),
            num_runs: runs.len() as i32,
            longest: runs.iter().map(|run| run.elements).max().unwrap_or(0),
        }));
    }

    /// Products in one go. Those that sum nothing are fills.
    pub(super) fn multiply(
        &mut self,
        products: Vec<Product>,
        precision: Precision,
        steps: &mut Steps,
    ) {
        let size = precision.real.bytes() as i64;
        let (empty, products): (Vec<Product>, Vec<Product>) = products
            .into_iter()
            .filter(|product| product.m > 0 && product.n > 0)
            .partition(|product| product.k == 0);
        for product in empty.iter().filter(|product| product.accumulate == 0) {
            // The columns of a row are adjacent; so are rows, unless the matrix is a part of a wider one.
            let (rows, width) = match product.c_row_stride == product.n {
                true => (1, product.m * product.n),
                false => (product.m, product.n),
            };
            steps.extend((0..rows).map(|row| Step::Zero {
                at: (product.c + size * row * product.c_row_stride) as u64,
                bytes: (size * width) as usize,
            }));
        }
        if products.is_empty() {
            return;
        }
        let (products, chains) = Product::chained(products);
        let fallback = Gemm {
            products: In::at(self.table(&Product::table(&products))),
            chains: In::at(self.table(&chains)),
            num_chains: chains.len() as i32 - 1,
            rows: products.iter().map(|product| product.m).max().unwrap_or(0),
            columns: products.iter().map(|product| product.n).max().unwrap_or(0),
        };
        steps.push(Step::Multiply {
            products,
            precision,
            fallback: fallback.launch(precision.real),
        });
    }

    pub(super) fn chosen(&mut self, rank: usize) -> Result<u64, ExecError> {
        let geometry = &self.job.lowered.geometry;
        self.extra(rank, Extra::Chosen, geometry.tokens * geometry.top_k * 4)
    }

    pub(super) fn scores(
        &mut self,
        rank: usize,
        weighted: bool,
    ) -> Result<Option<In<f32>>, ExecError> {
        let chosen = self.chosen(rank)?;
        Ok(weighted.then_some(In::at(chosen)))
    }

    /// Finds the slot of every copy: (places, address that they count from).
    pub(super) fn places(
        &mut self,
        rank: usize,
        slots: &Slots,
        steps: &mut Steps,
    ) -> Result<(u64, u64), ExecError> {
        let d = self.job.lowered.geometry.model_dim;
        let addresses: Vec<u64> = slots
            .chunks
            .iter()
            .map(|&chunk| self.at(rank, chunk))
            .collect();
        // A chunk without rows has no memory and no copies.
        let base = addresses
            .iter()
            .copied()
            .filter(|&at| at > 0)
            .min()
            .unwrap_or(0);
        let map = slots.map.tables();
        let cells = map.starts.len() / map.degree;
        let bases = map.starts.iter().enumerate().map(|(cell, &row)| {
            let chunk = addresses[cell / cells].max(base);
            (chunk - base) as i64 / self.size() + (row * d) as i64
        });
        let bases: Vec<i64> = bases.collect();
        let numbers = |of: &[usize]| -> Vec<i64> { of.iter().map(|&one| one as i64).collect() };
        let (rows, firsts) = (numbers(map.rows), numbers(map.firsts));
        let limit = i64::try_from(map.limit).unwrap_or(i64::MAX);
        let own_group = map.own_group.map_or(-1, |group| group as i32);
        let split = (map.groups as i32, map.degree as i32, own_group);
        let places = self.find(
            rank,
            [&rows, &firsts, &bases],
            limit,
            split,
            d as i64,
            steps,
        )?;
        Ok((places, base))
    }

    /// Finds the column of every copy in the dense tensors.
    pub(super) fn columns(
        &mut self,
        rank: usize,
        first: &[usize],
        steps: &mut Steps,
    ) -> Result<u64, ExecError> {
        let limit = i64::try_from(self.job.lowered.geometry.limit).unwrap_or(i64::MAX);
        // Locations are below the number of copies, so this many slots are as good as any larger limit.
        let copies = self.job.lowered.geometry.tokens * self.job.lowered.geometry.top_k;
        let rows = vec![limit.min(copies as i64); first.len()];
        let bases: Vec<i64> = first.iter().map(|&column| column as i64).collect();
        let firsts = vec![0; first.len()];
        self.find(rank, [&rows, &firsts, &bases], limit, (1, 1, 0), 1, steps)
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one launch")]
    pub(super) fn find(
        &mut self,
        rank: usize,
        [rows, firsts, bases]: [&[i64]; 3],
        limit: i64,
        (groups, degree, own_group): (i32, i32, i32),
        model_dim: i64,
        steps: &mut Steps,
    ) -> Result<u64, ExecError> {
        let geometry = &self.job.lowered.geometry;
        let copies = geometry.tokens * geometry.top_k;
        let num_experts = geometry.experts as i32;
        let places = self.extra(rank, Extra::Places, copies * 8)?;
        steps.push(plain(&SlotPlaces {
            experts: In::at(self.extra(rank, Extra::Experts, copies * 4)?),
            locations: In::at(self.extra(rank, Extra::Locations, copies * 4)?),
            rows: In::at(self.table(rows)),
            firsts: In::at(self.table(firsts)),
            bases: In::at(self.table(bases)),
            places: Out::at(places),
            copies: copies as i64,
            num_experts,
            groups,
            degree,
            limit,
            own_group,
            model_dim,
        }));
        Ok(places)
    }
}
