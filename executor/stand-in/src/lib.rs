//! A stand-in for `libcuda.so` (and `libnvrtc.so`, `libcublas.so`, `libnccl.so`) without a GPU: what the CUDA backend
//! enqueues really runs, on the kernels' host build, in any order that streams and events allow.
//!
//! Nothing runs when it is enqueued. When the host waits for something, heads of streams run one by one,
//! chosen by `STAND_IN_ORDER`, until it is done: so an order in which a missing event wait shows is found
//! by asking for it, not by luck, and a run repeats exactly.
//!
//! | variable | |
//! |---|---|
//! | `STAND_IN_ORDER` | 0 as issued, 1 the newest stream as far as it goes, 2 the oldest, 3 what was issued last, else a seed |
//! | `STAND_IN_THREADS` | order of a block's threads, see `moeplan_kernels::host::Run` |
//! | `STAND_IN_MEMORY` | bytes of a device |
//! | `STAND_IN_DROP_WAIT` | number of a `cuStreamWaitEvent` that is left out: a seeded fault |
//! | `STAND_IN_RACES` | 1 checks every launch for data races |
//! | `STAND_IN_DEVICES` | number of devices |
//! | `STAND_IN_DROP_RECEIVE` | number of an `ncclRecv` that is left out: a seeded fault |
//! | `STAND_IN_SHORT_RECEIVE` | number of an `ncclRecv` of one element less: a seeded fault |
//!
//! Memory, streams, events and kernels are those of one device: nothing on another may touch them.
#![allow(unsafe_code, reason = "the foreign interface of a driver")]
#![allow(
    unreachable_pub,
    missing_docs,
    reason = "symbols of the driver interface, found by name when the library is opened"
)]
#![allow(non_snake_case, reason = "names are those of the driver")]
#![allow(
    clippy::missing_safety_doc,
    reason = "the contracts are those of the CUDA driver interface"
)]

mod cublas;
mod driver;
mod machine;
mod module;
mod nccl;
mod nvrtc;
