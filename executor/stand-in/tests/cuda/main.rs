//! The CUDA backend end to end, without a GPU: its launches, arguments, streams, events and copies run under the stand-in
//! libraries and are held against the FP64 oracle, in the order issued and in adversarial ones.
//!
//! Every case is a process of its own, because libraries are found when a process starts: this binary starts itself.
#![cfg(target_os = "linux")]

mod cases;
mod process;

use process::{Child, run};

/// Cases that cover every task and every kind of dependency.
const CASES: [&str; 12] = [
    "one-rank",
    "linear",
    "pipelined",
    "conventional",
    "two-dh",
    "gathered",
    "sliced",
    "replicated",
    "dense",
    "dropless",
    "prioritized",
    "recorded",
];

/// Runs in the process that a test starts; nothing in any other.
#[test]
fn in_a_process_of_its_own() {
    if let Ok(case) = std::env::var("STAND_IN_CASE") {
        cases::run(&case);
    }
}

#[test]
fn every_case_is_the_oracle_in_order() {
    for case in CASES {
        let told = run(case, &[]).unwrap_or_else(|why| panic!("{case}: {why}"));
        assert_eq!(told.number("leaked"), 0, "{case}");
        assert!(told.number("waits") > 0, "{case} waits for no event");
    }
}

#[test]
fn every_case_is_the_oracle_in_adversarial_orders() {
    for (index, case) in CASES.into_iter().enumerate() {
        let seed = (17 + index).to_string();
        for order in ["1", "2", &seed] {
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

#[test]
fn ranks_may_be_timed_apart() {
    run("two-dh", &[("STAND_IN_APART", "1")]).unwrap();
}

/// Leaves out one event wait after the other. Some are implied by others; those that are not must show as wrong numbers
/// or as reads of uninitialised memory in one of three orders.
#[test]
fn a_missing_event_wait_shows() {
    let waits = run("pipelined", &[]).unwrap().number("waits");
    let mut shown = 0;
    let mut tried = 0;
    for wait in (1..=waits).step_by((waits / 24).max(1) as usize) {
        tried += 1;
        let number = wait.to_string();
        let wrong = ["1", "2", "5"].into_iter().any(|order| {
            run(
                "pipelined",
                &[("STAND_IN_ORDER", order), ("STAND_IN_DROP_WAIT", &number)],
            )
            .is_err()
        });
        shown += u32::from(wrong);
    }
    println!("{shown} of {tried} left-out waits (of {waits}) showed");
    assert!(
        shown * 3 >= tried,
        "only {shown} of {tried} left-out waits showed"
    );
}

#[test]
fn a_device_without_enough_memory_is_told() {
    let why = run("linear", &[("STAND_IN_MEMORY", "20000")]).unwrap_err();
    assert!(why.contains("no memory for `"), "{why}");
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
