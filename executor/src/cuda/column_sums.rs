//! Sums over rows: of expert gradients for their biases, and of the gate's numbers.

use super::blas::Precision;
use super::memory::Extra;
use super::plan::{Planner, Steps};
use crate::ExecError;
use crate::task::Run;
use moeplan_kernels::{BiasGradient, ExpertSlices, In, Out, Slice, SliceSums};

/// What is summed, and where to.
pub(super) struct ColumnSums {
    /// Number type of both.
    pub(super) precision: Precision,
    /// Address of (rows, width).
    pub(super) values: u64,
    /// Elements of a row.
    pub(super) width: usize,
    /// First column that is summed, and how many are.
    pub(super) columns: (usize, usize),
    /// What the experts' offsets count from.
    pub(super) sums: u64,
    /// Add to what is there.
    pub(super) accumulate: bool,
}

impl Planner<'_> {
    /// Sums each expert's rows to its offset of `offsets`.
    pub(super) fn sum_rows(
        &mut self,
        rank: usize,
        of: &ColumnSums,
        offsets: &[usize],
        runs: &[Run],
        steps: &mut Steps,
    ) -> Result<(), ExecError> {
        let mut slices = Vec::new();
        let mut experts = Vec::with_capacity(offsets.len());
        for (expert, &offset) in offsets.iter().enumerate() {
            let first = slices.len() as i64;
            for run in runs.iter().filter(|run| run.expert == expert) {
                slices.extend(Slice::of(run.at as i64, run.rows as i64));
            }
            experts.push(ExpertSlices {
                first,
                slices: slices.len() as i64 - first,
                gradient: offset as i64,
            });
        }
        let bias_columns = of.columns.1 as i64;
        let bytes = slices.len() * of.columns.1 * 4;
        let sums = self.extra(rank, Extra::SliceSums, bytes)?;
        if !slices.is_empty() {
            steps.push(of.precision.launch(&SliceSums {
                values: In::at(of.values),
                sums: Out::at(sums),
                slices: In::at(self.table(&Slice::table(&slices))),
                num_slices: slices.len() as i32,
                columns: of.width as i64,
                first_column: of.columns.0 as i64,
                bias_columns,
            }));
        }
        steps.push(of.precision.launch(&BiasGradient {
            sums: In::at(sums),
            gradients: Out::at(of.sums),
            experts: In::at(self.table(&ExpertSlices::table(&experts))),
            num_experts: experts.len() as i32,
            bias_columns,
            accumulate: of.accumulate,
        }));
        Ok(())
    }

    /// Column sums of (rows, columns) fp32 numbers: one "expert" that owns all rows.
    pub(super) fn sum_columns(
        &mut self,
        rank: usize,
        values: u64,
        [rows, columns]: [usize; 2],
        sums: u64,
        steps: &mut Steps,
    ) -> Result<(), ExecError> {
        let of = ColumnSums {
            precision: self.gate,
            values,
            width: columns,
            columns: (0, columns),
            sums,
            accumulate: false,
        };
        let all = Run {
            expert: 0,
            at: 0,
            rows,
        };
        self.sum_rows(rank, &of, &[0], &[all], steps)
    }
}
