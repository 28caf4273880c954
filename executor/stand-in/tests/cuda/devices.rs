//! Several GPUs: the same bits as one, and what the stand-in must not let pass.

use crate::process::{Child, run as process};
use libloading::Library;
use std::ffi::{c_char, c_int};

/// The case that touches the memory of another device.
pub(crate) const CASE: &str = "devices";

/// Cases of every kind of exchange, all of 4 ranks: linear, chunked, 2DH, sums of weights, repeated rows, dropless, and
/// what the host decides.
const CASES: [&str; 8] = [
    "linear",
    "pipelined",
    "conventional",
    "two-dh",
    "gathered",
    "sliced",
    "replicated",
    "dropless",
];

/// The digest of what ranks leave, on `devices` GPUs.
fn bits(case: &str, devices: &str, settings: &[(&str, &str)]) -> u64 {
    let gpus = [("STAND_IN_DEVICES", devices), ("STAND_IN_GPUS", devices)];
    let settings = [settings, &gpus].concat();
    let told = process(case, &settings).unwrap_or_else(|why| panic!("{case} {settings:?}: {why}"));
    assert_eq!(told.number("leaked"), 0, "{case} on {devices} GPUs");
    told.number("bits")
}

#[test]
fn several_devices_give_the_bits_of_one() {
    for case in CASES {
        let one = bits(case, "1", &[]);
        for devices in ["2", "3", "4"] {
            assert_eq!(bits(case, devices, &[]), one, "{case} on {devices} GPUs");
        }
    }
    for case in ["dense", "prioritized", "recorded", "noisy", "cosine"] {
        assert_eq!(bits(case, "2", &[]), bits(case, "1", &[]), "{case}");
    }
}

/// 24 ranks a device exchange 2 x 24 x 24 messages at once, each a send and a receive: more than the 2,048 calls that NCCL, and
/// the stand-in, take in a group.
#[test]
fn more_messages_than_a_group_takes_go_in_several() {
    assert_eq!(bits("crowd", "2", &[]), bits("crowd", "1", &[]));
}

/// Buffers share memory here: what is still to be sent must not be overwritten.
#[test]
fn several_devices_give_the_bits_of_one_in_adversarial_orders() {
    for (index, case) in CASES.into_iter().enumerate() {
        let one = bits(case, "1", &[]);
        let seed = (31 + index).to_string();
        for (order, devices) in [
            ("1", "2"),
            ("3", "4"),
            ("2", "4"),
            (&seed, "2"),
            (&seed, "4"),
        ] {
            let settings = [("STAND_IN_ORDER", order), ("STAND_IN_SHARED", "1")];
            let several = bits(case, devices, &settings);
            assert_eq!(several, one, "{case} on {devices} GPUs in order {order}");
        }
    }
}

#[test]
fn several_devices_give_the_bits_of_one_in_every_number_type() {
    for case in ["two-dh", "sliced", "gathered"] {
        for dtype in ["fp16", "bf16", "tf32"] {
            let settings = [
                ("STAND_IN_DTYPE", dtype),
                ("STAND_IN_BLAS", "1"),
                ("STAND_IN_ORDER", "3"),
            ];
            let one = bits(case, "1", &settings);
            assert_eq!(bits(case, "4", &settings), one, "{case} in {dtype}");
        }
    }
}

#[test]
fn a_message_without_its_other_end_is_told() {
    let two = [("STAND_IN_DEVICES", "2"), ("STAND_IN_GPUS", "2")];
    let why = process(
        "linear",
        &[&two[..], &[("STAND_IN_DROP_RECEIVE", "5")]].concat(),
    );
    let why = why.unwrap_err();
    assert!(
        why.contains("ncclSend of") && why.contains("has no other end"),
        "{why}"
    );
    assert!(why.contains("CUDA_ERROR_LAUNCH_FAILED"), "{why}");

    let why = process(
        "linear",
        &[&two[..], &[("STAND_IN_SHORT_RECEIVE", "5")]].concat(),
    );
    let why = why.unwrap_err();
    assert!(why.contains("meets ncclSend of"), "{why}");
    assert!(why.contains("NCCL: ncclInvalidUsage"), "{why}");
}

#[test]
fn a_machine_without_nccl_is_told_where_there_are_several_devices() {
    let two = [("STAND_IN_DEVICES", "2"), ("STAND_IN_GPUS", "2")];
    let why = Child::new("linear").without_nccl().run(&two).unwrap_err();
    assert!(
        why.contains("libnccl.so, which joins several GPUs, is not on this machine"),
        "{why}"
    );
    Child::new("linear").without_nccl().run(&[]).unwrap();
}

#[test]
fn more_devices_than_there_are_is_told() {
    let settings = [("STAND_IN_DEVICES", "2"), ("STAND_IN_GPUS", "4")];
    let why = process("linear", &settings).unwrap_err();
    assert!(
        why.contains("4 GPUs from number 0 on, where the machine has 2"),
        "{why}"
    );
}

#[test]
fn more_devices_than_ranks_is_told() {
    let settings = [("STAND_IN_DEVICES", "4"), ("STAND_IN_GPUS", "4")];
    let why = process("small", &settings).unwrap_err();
    assert!(
        why.contains("`devices`: expected at most one a rank, which are 2, found 4"),
        "{why}"
    );
}

#[test]
fn ranks_are_timed_apart_on_one_device_only() {
    let settings = [
        ("STAND_IN_DEVICES", "2"),
        ("STAND_IN_GPUS", "2"),
        ("STAND_IN_APART", "1"),
    ];
    let why = process("linear", &settings).unwrap_err();
    assert!(
        why.contains("`devices`: expected 1 where ranks run one after the other, found 2"),
        "{why}"
    );
}

#[test]
fn memory_of_another_device_is_out_of_reach() {
    process(CASE, &[("STAND_IN_DEVICES", "2")]).unwrap();
}

/// A driver call by name.
macro_rules! call {
    ($library:ident, $name:literal, $($argument:expr => $kind:ty),*) => {{
        let function = $library.get::<unsafe extern "C" fn($($kind),*) -> c_int>($name).unwrap();
        function($($argument),*)
    }};
}

/// Fills, copies and a kernel of device 0 on memory of device 1.
#[allow(unsafe_code, reason = "calls into the stand-in library")]
pub(crate) fn run() {
    // SAFETY: our own library and functions of these types; addresses are those it gave.
    unsafe {
        let cuda = Library::new("libcuda.so").unwrap();
        let mut memory = [0_u64; 2];
        let mut streams = [0_u64; 2];
        for device in [1, 0] {
            let mut context = 0_u64;
            assert_eq!(
                call!(cuda, "cuDevicePrimaryCtxRetain", &raw mut context => *mut u64, device => c_int),
                0
            );
            assert_eq!(call!(cuda, "cuCtxSetCurrent", context => u64), 0);
            let index = device as usize;
            assert_eq!(
                call!(cuda, "cuStreamCreate", &raw mut streams[index] => *mut u64, 1 => u32),
                0
            );
            assert_eq!(
                call!(cuda, "cuMemAlloc_v2", &raw mut memory[index] => *mut u64, 256 => usize),
                0
            );
        }
        let [own, other] = memory;
        let [stream, foreign] = streams;
        let fill = |at: u64, stream: u64| call!(cuda, "cuMemsetD8Async", at => u64, 0 => u8, 256 => usize, stream => u64);
        assert_eq!(fill(own, stream), 0);
        assert_eq!(
            fill(other, stream),
            1,
            "a fill reached another device's memory"
        );
        assert_eq!(
            fill(other, foreign),
            201,
            "another device's stream took work"
        );
        let copied = call!(cuda, "cuMemcpyDtoDAsync_v2", own => u64, other => u64, 256 => usize, stream => u64);
        assert_eq!(copied, 1, "a copy reached another device's memory");
        let mut event = 0_u64;
        assert_eq!(
            call!(cuda, "cuEventCreate", &raw mut event => *mut u64, 0 => u32),
            0
        );
        assert_eq!(
            call!(cuda, "cuEventRecord", event => u64, foreign => u64),
            400
        );
        assert_eq!(call!(cuda, "cuEventRecord", event => u64, stream => u64), 0);
        assert_eq!(
            call!(cuda, "cuStreamWaitEvent", foreign => u64, event => u64, 0 => u32),
            0
        );
        assert_eq!(call!(cuda, "cuStreamSynchronize", stream => u64), 0);

        let (mut module, mut kernel) = (0_u64, 0_u64);
        let ptx = c".version 8.0\n.visible .entry cast_to_float_f32(.param .u64 a, .param .u64 b, .param .u64 c)";
        assert_eq!(
            call!(cuda, "cuModuleLoadData", &raw mut module => *mut u64, ptx.as_ptr() => *const c_char),
            0
        );
        let name = c"cast_to_float_f32".as_ptr();
        assert_eq!(
            call!(cuda, "cuModuleGetFunction", &raw mut kernel => *mut u64, module => u64, name => *const c_char),
            0
        );
        let launch = |from: u64, stream: u64| {
            let mut values = [from, own, 8];
            let mut pointers = values.each_mut().map(std::ptr::from_mut);
            call!(
                cuda, "cuLaunchKernel", kernel => u64, 1 => u32, 1 => u32, 1 => u32, 32 => u32, 1 => u32, 1 => u32,
                0 => u32, stream => u64, pointers.as_mut_ptr() => *mut *mut u64,
                std::ptr::null_mut() => *mut *mut u64
            )
        };
        assert_eq!(
            launch(own, foreign),
            201,
            "another device's stream took a kernel"
        );
        assert_eq!(launch(own, stream), 0);
        assert_eq!(call!(cuda, "cuStreamSynchronize", stream => u64), 0);
        assert_eq!(launch(other, stream), 0);
        let ran = call!(cuda, "cuStreamSynchronize", stream => u64);
        assert_eq!(ran, 719, "a kernel reached another device's memory");
    }
}
