//! What predicts a step that this machine runs.

use moeplan_executor::Executed;
use moeplan_sim::cost::cpu::{CpuModel, demand};
use moeplan_sim::cost::one_gpu::work_on_one_gpu;
use moeplan_sim::cost::price::price;
use moeplan_sim::cost::{CostModel, analytic::Analytic};
use moeplan_sim::engine;
use moeplan_sim::hardware::CpuParams;
use moeplan_sim::ir::{Op, Program};
use moeplan_sim::units::Time;

/// The constants of what runs the ranks.
#[derive(Debug)]
pub enum Constants {
    /// Threads on cores, as `moeplan calibrate` measured them.
    Cpu(Box<CpuParams>),
    /// One GPU that runs all ranks, one after the other.
    Gpu(Box<Analytic>),
}

/// A step as predicted.
#[derive(Debug, Clone, PartialEq)]
pub struct Predicted {
    /// Time of the step.
    pub step: Time,
    /// Time of each operation over all ranks, nanoseconds: of cores, or of the GPU.
    pub ops_ns: Vec<f64>,
}

impl Constants {
    /// What is predicted, as `ran` took it: the step; of a GPU, which records times between operations, these alone.
    pub fn measured(&self, ran: &Executed) -> Time {
        match self {
            Constants::Cpu(_) => ran.timeline.step_time(),
            Constants::Gpu(_) => ran.busy.iter().flatten().copied().sum(),
        }
    }

    /// What `program` takes.
    pub fn predict(&self, program: &Program) -> Predicted {
        let over_ranks = |of: &dyn Fn(&Op, usize) -> f64| -> Vec<f64> {
            let ranks = |op| (0..program.world_size).map(move |rank| of(op, rank)).sum();
            program.ops.iter().map(ranks).collect()
        };
        match self {
            Constants::Cpu(params) => {
                let model = CpuModel::new(params, program.world_size as u64);
                let priced = price(program, &model);
                let (timeline, _) = engine::run(program, &priced, model.concurrency());
                let core = |op: &Op, rank| model.core_us(&demand(program, op, rank)) * 1e3;
                Predicted {
                    step: timeline.step_time(),
                    ops_ns: over_ranks(&core),
                }
            }
            Constants::Gpu(model) => {
                let ops_ns = over_ranks(&|op, rank| on_one_gpu_ns(&**model, program, op, rank));
                let step = ops_ns.iter().sum::<f64>() * 1e-9;
                Predicted {
                    step: Time::from_secs_f64(step),
                    ops_ns,
                }
            }
        }
    }
}

/// Kernels one after the other.
fn on_one_gpu_ns(model: &dyn CostModel, program: &Program, op: &Op, rank: usize) -> f64 {
    let work = work_on_one_gpu(program, op, rank);
    let kernels = work.iter().map(|work| model.kernel(work).time);
    kernels.map(|time| time.as_secs_f64() * 1e9).sum()
}
