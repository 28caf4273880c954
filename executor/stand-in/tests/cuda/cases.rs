//! A case, run on the CUDA backend under the stand-in and held against the oracle.

use crate::fixture::cases::{bits, case};
use moeplan_executor::cuda::{Cuda, Settings};
use moeplan_sim::spec::DType;
use std::num::NonZeroUsize;

/// Runs a case, in the process that `process` started.
pub(crate) fn run(name: &str) {
    let dtype = match std::env::var("STAND_IN_DTYPE") {
        Ok(name) => name.parse().unwrap(),
        Err(_) => DType::Fp32,
    };
    let case = case(name).of(dtype);
    let settings = Settings {
        without_blas: std::env::var_os("STAND_IN_BLAS").is_none(),
        ranks_apart: std::env::var_os("STAND_IN_APART").is_some(),
        buffers_apart: std::env::var_os("STAND_IN_SHARED").is_none(),
        cache: std::env::current_exe()
            .ok()
            .and_then(|test| Some(test.parent()?.join("stand-in/cache"))),
        devices: std::env::var("STAND_IN_GPUS").map_or(NonZeroUsize::MIN, |n| n.parse().unwrap()),
        ..Settings::default()
    };
    let mut backend = Cuda::probe(settings).unwrap_or_else(|why| panic!("{why}"));
    println!("device={}", backend.device_name());
    println!("blas={}", u8::from(backend.has_blas()));
    // Twice: the second run finds everything compiled and must not depend on what the first left.
    let runs = match std::env::var_os("STAND_IN_TWICE") {
        Some(_) => 2,
        None => 1,
    };
    for _ in 0..runs {
        let ran = case
            .hold(&mut backend)
            .unwrap_or_else(|why| panic!("{why}"));
        println!("bits={}", bits(&ran.ran.ranks));
        let (program, timeline) = (&ran.program, &ran.ran.timeline);
        let mut spans = (0..program.world_size).flat_map(|rank| timeline.rank(rank));
        assert!(
            spans.all(|span| span.start <= span.end),
            "an operation ends before it starts"
        );
    }
    drop(backend);
    println!("waits={}", stand_in("moeplan_stand_in_waits"));
    println!("leaked={}", stand_in("moeplan_stand_in_used"));
}

/// Asks the stand-in library for a number.
#[allow(unsafe_code, reason = "a call into the stand-in library")]
fn stand_in(name: &str) -> u64 {
    // SAFETY: our own library, which is loaded already, and a function of this type.
    unsafe {
        let library = libloading::Library::new("libcuda.so").unwrap();
        let function = library.get::<unsafe extern "C" fn() -> u64>(name).unwrap();
        function()
    }
}
