//! How much a product and a copy on two cores slow each other down.

use super::gemm;
use crate::ExecError;
use crate::task::{Gemm, Matrix};
use cpu_time::ThreadTime;
use moeplan_sim::ir::BufferId;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Rows, columns and depth of the product.
const SIZE: usize = 512;
/// Elements of the copy: 32 MiB, beyond caches.
const ELEMENTS: usize = 8 << 20;

/// Speed of a product beside a copy, and of a copy beside a product, 1 being undisturbed: core
/// times of `rounds` of each, alone and together.
///
/// # Errors
/// None on a machine that can run threads.
pub fn overlap(rounds: usize) -> Result<(f64, f64), ExecError> {
    let own = BufferId(0);
    let rows = Matrix::rows(own, 0, SIZE);
    let product = Gemm {
        m: SIZE,
        n: SIZE,
        k: SIZE,
        a: rows,
        b: rows,
        c: rows,
        accumulate: false,
    };
    let (a, b) = (vec![0.5; SIZE * SIZE], vec![0.25; SIZE * SIZE]);
    let mut c = vec![0.0; SIZE * SIZE];
    let source = vec![1.0_f32; ELEMENTS];
    let mut target = vec![0.0_f32; ELEMENTS];
    let mut multiply = |rounds: usize| -> Result<Duration, ExecError> {
        let clock = ThreadTime::now();
        for _ in 0..rounds {
            gemm::run(&product, &a, &b, &mut c)?;
        }
        Ok(clock.elapsed())
    };
    let mut copy = |rounds: usize| {
        let clock = ThreadTime::now();
        for _ in 0..rounds {
            target.copy_from_slice(std::hint::black_box(&source));
        }
        clock.elapsed()
    };
    multiply(1)?;
    copy(1);
    let (gemm_alone, copy_alone) = (multiply(rounds)?, copy(rounds));
    // Each goes on for as long as the other one is timed.
    let mut beside = [Duration::ZERO; 2];
    for (which, measured) in beside.iter_mut().enumerate() {
        let (done, ready) = (AtomicBool::new(false), Barrier::new(2));
        *measured = std::thread::scope(|scope| {
            let (multiply, copy) = (&mut multiply, &mut copy);
            let (done, ready) = (&done, &ready);
            if which == 0 {
                let other = scope.spawn(move || {
                    ready.wait();
                    while !done.load(Ordering::Relaxed) {
                        copy(1);
                    }
                });
                ready.wait();
                let time = multiply(rounds);
                done.store(true, Ordering::Relaxed);
                let _ = other.join();
                time
            } else {
                let other = scope.spawn(move || {
                    ready.wait();
                    while !done.load(Ordering::Relaxed) && multiply(1).is_ok() {}
                });
                ready.wait();
                let time = copy(rounds);
                done.store(true, Ordering::Relaxed);
                let _ = other.join();
                Ok(time)
            }
        })?;
    }
    let share = |alone: Duration, beside: Duration| {
        (alone.as_secs_f64() / beside.as_secs_f64().max(1e-12)).clamp(0.01, 1.0)
    };
    Ok((share(gemm_alone, beside[0]), share(copy_alone, beside[1])))
}
