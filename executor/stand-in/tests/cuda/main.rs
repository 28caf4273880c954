//! The CUDA backend end to end, without a GPU: its launches, arguments, streams, events and copies run under the stand-in
//! libraries and are held against the FP64 oracle, in the order issued and in adversarial ones.
//!
//! Every case is a process of its own, because libraries are found when a process starts: this binary starts itself.
#![cfg(target_os = "linux")]

#[cfg(test)]
mod cases;
#[cfg(test)]
mod devices;
#[cfg(test)]
#[path = "../../../tests/fixture/mod.rs"]
mod fixture;
#[cfg(test)]
mod process;
#[cfg(test)]
mod program;

use fixture::cases::CASES;
use process::{Child, run};

/// Runs in the process that a test starts; nothing in any other.
#[test]
fn in_a_process_of_its_own() {
    match std::env::var("STAND_IN_CASE") {
        Ok(case) if case == program::CASE => program::run(),
        Ok(case) if case == devices::CASE => devices::run(),
        Ok(case) => cases::run(&case),
        Err(_) => {}
    }
}

#[test]
fn every_case_is_the_oracle_in_order() {
    for case in CASES {
        let told =
            run(case, &[("STAND_IN_TWICE", "1")]).unwrap_or_else(|why| panic!("{case}: {why}"));
        assert_eq!(told.number("leaked"), 0, "{case}");
        assert!(told.number("waits") > 0, "{case} waits for no event");
    }
}

#[test]
fn every_case_is_the_oracle_in_adversarial_orders() {
    for (index, case) in CASES.into_iter().enumerate() {
        let seed = (17 + index).to_string();
        for order in ["1", "3", &seed] {
            run(
                case,
                &[("STAND_IN_ORDER", order), ("STAND_IN_THREADS", order)],
            )
            .unwrap_or_else(|why| panic!("{case}, order {order}: {why}"));
        }
    }
}

#[test]
fn kernels_of_a_step_have_no_data_races() {
    for case in ["pipelined", "dense", "sliced"] {
        run(case, &[("STAND_IN_RACES", "1")]).unwrap_or_else(|why| panic!("{case}: {why}"));
    }
}

#[test]
fn products_through_cublas_are_the_same() {
    for case in CASES {
        let told = run(case, &[("STAND_IN_BLAS", "1"), ("STAND_IN_ORDER", "1")]);
        let told = told.unwrap_or_else(|why| panic!("{case}: {why}"));
        assert_eq!(told.number("blas"), 1);
    }
}

/// FP16 and BF16 tensors, and TF32 products, are off by their rounding and no more; bytes are counted as the program
/// states them in 2-byte elements, or the run fails.
#[test]
fn every_case_is_the_oracle_in_every_number_type() {
    for case in CASES {
        for settings in [
            &[("STAND_IN_DTYPE", "fp16"), ("STAND_IN_ORDER", "3")][..],
            &[("STAND_IN_DTYPE", "bf16"), ("STAND_IN_BLAS", "1")],
            &[("STAND_IN_DTYPE", "fp16"), ("STAND_IN_BLAS", "1")],
            &[("STAND_IN_DTYPE", "tf32"), ("STAND_IN_BLAS", "1")],
        ] {
            let told =
                run(case, settings).unwrap_or_else(|why| panic!("{case} {settings:?}: {why}"));
            assert_eq!(told.number("leaked"), 0, "{case}");
        }
    }
}

/// Buffers that are never alive at once share memory: in every order that streams and events allow, none is overwritten
/// while it is in use.
#[test]
fn buffers_that_share_memory_need_no_further_waits() {
    for case in CASES {
        for order in ["0", "1", "3", "29"] {
            let settings = [("STAND_IN_SHARED", "1"), ("STAND_IN_ORDER", order)];
            run(case, &settings).unwrap_or_else(|why| panic!("{case}: {why}"));
        }
    }
}

#[test]
fn ranks_may_be_timed_apart() {
    run("two-dh", &[("STAND_IN_APART", "1")]).unwrap();
}

/// Leaves out event waits, one a run. Many are implied by others and make no difference; where none did, adversarial orders would
/// prove nothing, so a good part has to show as wrong numbers or as reads of uninitialised memory.
#[test]
fn a_missing_event_wait_shows() {
    let waits = run("small", &[]).unwrap().number("waits");
    let shows = |wait: &u64| {
        let number = wait.to_string();
        ["3", "1", "2", "5", "8"].into_iter().any(|order| {
            let settings = [
                ("STAND_IN_ORDER", order),
                ("STAND_IN_DROP_WAIT", number.as_str()),
            ];
            run("small", &settings).is_err_and(|why| {
                // A wrong result, not a process that could not start.
                assert!(
                    why.contains("is off by")
                        || why.contains("is not finite")
                        || why.contains("disagrees"),
                    "{why}"
                );
                true
            })
        })
    };
    let tried: Vec<u64> = (1..=waits).step_by(3).collect();
    let shown: Vec<u64> = tried.iter().copied().filter(shows).collect();
    println!(
        "{} of {} left-out waits showed: {shown:?}",
        shown.len(),
        tried.len()
    );
    assert!(
        shown.len() * 6 >= tried.len(),
        "only {} of {} left-out waits showed",
        shown.len(),
        tried.len()
    );
}

#[test]
fn a_device_without_enough_memory_is_told() {
    let why = run("linear", &[("STAND_IN_MEMORY", "20000")]).unwrap_err();
    assert!(why.contains("no memory for `"), "{why}");

    // Room for the layer's own buffers, and none beside them for what cuBLAS works in.
    let settings = [("STAND_IN_MEMORY", "1000000")];
    run("linear", &settings).unwrap();
    let with_blas = [settings[0], ("STAND_IN_BLAS", "1")];
    let why = run("linear", &with_blas).unwrap_err();
    assert!(why.contains("no memory for `cuBLAS workspace`"), "{why}");
}

#[test]
fn a_machine_without_a_device_is_told() {
    let why = run("linear", &[("STAND_IN_DEVICES", "0")]).unwrap_err();
    assert!(
        why.contains("GPU 0") && why.contains("CUDA_ERROR_INVALID_DEVICE"),
        "{why}"
    );
}

#[test]
fn a_machine_without_libraries_is_told() {
    let why = Child::new("linear")
        .without_libraries()
        .run(&[])
        .unwrap_err();
    assert!(why.contains("libcuda.so is not on this machine"), "{why}");
    assert!(why.contains("looked for libcuda.so"), "{why}");
}
