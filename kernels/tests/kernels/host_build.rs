//! Of the host build alone: it catches what it says it catches, and its signatures are those of the Rust arguments.

use crate::memory::skipped;
use moeplan_kernels::host::{self, Allocation, Memory, Run};
use moeplan_kernels::{Arg, Geometry, In, KernelId, Out, Real, signature};
use std::collections::BTreeSet;

const RUN: Run = Run {
    order: 0,
    threads: 1,
    races: false,
};

/// Runs a kernel of `host/faults.cu` with 64 threads a block on an output of 64 floats.
fn run(entry: &str, blocks: u32, how: Run) -> Result<Vec<f32>, String> {
    let mut memory = Memory::default();
    let out = memory.allocate(256);
    memory.bytes(out).fill(0);
    let kernel = host::find(entry).unwrap();
    let argument = Arg::Pointer(out);
    let geometry = Geometry {
        grid: [blocks, 1, 1],
        block: [64, 1, 1],
        shared_bytes: 256,
    };
    let allocations = [Allocation {
        first: out,
        bytes: 256,
    }];
    // SAFETY: one pointer parameter, as all kernels of faults.cu; the allocation is ours alone.
    #[allow(unsafe_code, reason = "faulty kernels have no typed arguments")]
    unsafe {
        host::run(
            kernel,
            &mut [argument.as_ptr().cast_mut()],
            &geometry,
            &allocations,
            how,
        )
    }
    .map_err(|fault| fault.0)?;
    let floats = memory.bytes(out).chunks_exact(4);
    Ok(floats
        .map(|b| f32::from_ne_bytes(b.try_into().unwrap()))
        .collect())
}

fn caught(entry: &str, how: Run, expected: &str) {
    let fault = run(entry, 1, how).unwrap_err();
    assert!(fault.contains(expected), "{entry}: {fault}");
}

#[test]
fn every_seeded_fault_is_caught() {
    if skipped() {
        return;
    }
    let races = Run { races: true, ..RUN };
    for order in 0..4 {
        caught("fault_missing_barrier", Run { order, ..races }, "data race");
        caught(
            "fault_divergent_barrier",
            Run { order, ..RUN },
            "different barriers",
        );
        caught("fault_lane_missing", Run { order, ..RUN }, "deadlock");
        caught(
            "fault_shared_overrun",
            Run { order, ..RUN },
            "out of bounds",
        );
        caught(
            "fault_counter_not_atomic",
            Run { order, ..races },
            "data race",
        );
        caught(
            "fault_shuffle_orders_nothing",
            Run { order, ..races },
            "data race",
        );
    }
    let read = run("fault_uninitialised_shared", 1, RUN).unwrap();
    assert!(read.iter().all(|v| v.is_nan()));
}

#[test]
fn right_kernels_pass_the_race_check() {
    if skipped() {
        return;
    }
    for order in 0..4 {
        let races = Run {
            order,
            races: true,
            ..RUN
        };
        assert_eq!(
            run(
                "right_barrier",
                3,
                Run {
                    races: false,
                    ..races
                }
            )
            .unwrap()[0],
            1.0
        );
        assert_eq!(run("right_barrier", 1, races).unwrap()[63], 0.0);
        assert_eq!(run("right_counter", 5, races).unwrap()[0], 320.0);
        // Two warps of a block write the same cells, so one block of it races with itself across warps.
        assert!(
            run("right_warp", 1, races)
                .unwrap_err()
                .contains("data race")
        );
    }
}

#[test]
fn blocks_are_never_ordered() {
    if skipped() {
        return;
    }
    let fault = run("right_barrier", 2, Run { races: true, ..RUN }).unwrap_err();
    assert!(
        fault.contains("data race"),
        "both blocks write the same output: {fault}"
    );
}

#[test]
fn one_byte_past_the_end_is_caught() {
    if skipped() {
        return;
    }
    for short in [1, 2, 4] {
        let mut memory = Memory::default();
        let from = memory.allocate(64);
        let to = memory.allocate(64 - short);
        let run = moeplan_kernels::CopyRun {
            source: from as i64,
            at: 0,
            bytes: 64,
        };
        let runs = memory.allocate(24);
        let table: Vec<u8> = moeplan_kernels::CopyRun::table(&[run])
            .iter()
            .flat_map(|v| v.to_ne_bytes())
            .collect();
        memory.bytes(runs).copy_from_slice(&table);
        let copy = moeplan_kernels::CopyRuns {
            target: Out::at(to),
            runs: In::at(runs),
            num_runs: 1,
            longest: 64,
        };
        let launch = moeplan_kernels::Arguments::launch(&copy, Real::F32);
        let fault = memory.launch(&launch, RUN).unwrap_err();
        assert!(fault.0.contains("out of bounds"), "{fault}");
    }
}

#[test]
fn arguments_have_the_kinds_of_the_compiled_signatures() {
    if skipped() {
        return;
    }
    let mut compiled: BTreeSet<&str> = Real::ALL
        .iter()
        .flat_map(|&real| host::kernels(real))
        .map(host::HostKernel::name)
        .filter(|name| !name.starts_with("fault_") && !name.starts_with("right_"))
        .collect();
    for &kernel in KernelId::ALL {
        for &real in kernel.module().reals() {
            let entry = kernel.entry(real);
            let host = host::find(entry).unwrap_or_else(|| panic!("{entry} is not compiled"));
            assert_eq!(signature(kernel), host.parameters(), "{entry}");
            assert!(compiled.remove(entry), "{entry} is listed twice");
        }
    }
    assert!(
        compiled.is_empty(),
        "kernels without arguments in Rust: {compiled:?}"
    );
}
