//! Messages between GPUs of one box through NCCL: sends and receives only, so that sums stay with our own kernels and
//! their order.
#![allow(unsafe_code, reason = "NCCL takes device addresses")]

use crate::ExecError;
use cudarc::driver::CudaStream;
use cudarc::nccl::{result, sys};
use std::ffi::c_void;
use std::ops::Range;

/// Messages of one group: NCCL takes 2,048 sends and receives between a start and an end.
const GROUP: usize = 1024;

/// One communicator a GPU.
pub(super) struct Nccl(Vec<sys::ncclComm_t>);

impl Drop for Nccl {
    fn drop(&mut self) {
        for &communicator in &self.0 {
            // SAFETY: from `Nccl::new`, destroyed once; a step waits for its streams before it ends.
            let _ = unsafe { result::comm_destroy(communicator) };
        }
    }
}

/// One end of a message.
#[derive(Clone, Copy)]
pub(super) struct End<'a> {
    /// Number of the GPU.
    pub(super) device: usize,
    /// A stream of that GPU.
    pub(super) stream: &'a CudaStream,
    /// Where the bytes are or go.
    pub(super) at: u64,
}

/// Bytes from one GPU to another.
#[derive(Clone, Copy)]
pub(super) struct Message<'a> {
    /// The sender.
    pub(super) from: End<'a>,
    /// The receiver.
    pub(super) to: End<'a>,
    /// How many.
    pub(super) bytes: usize,
}

fn failed(error: result::NcclError) -> ExecError {
    ExecError::Device(format!("NCCL: {:?}", error.0))
}

impl Nccl {
    /// Whether the library is there; cudarc panics if it is used and is not.
    pub(super) fn is_present() -> bool {
        // SAFETY: only looks for the library.
        unsafe { sys::is_culib_present() }
    }

    /// Communicators of the GPUs of these numbers.
    pub(super) fn new(ordinals: Range<usize>) -> Result<Nccl, ExecError> {
        let ordinals: Vec<i32> = ordinals.map(|ordinal| ordinal as i32).collect();
        let mut communicators = vec![std::ptr::null_mut(); ordinals.len()];
        // SAFETY: room for one communicator a GPU.
        unsafe {
            result::comm_init_all(
                communicators.as_mut_ptr(),
                ordinals.len() as i32,
                ordinals.as_ptr(),
            )
        }
        .map_err(failed)?;
        Ok(Nccl(communicators))
    }

    /// Enqueues messages. Both ends of each are in one group, so none waits for a call that the host has yet to make.
    pub(super) fn exchange(&self, messages: &[Message<'_>]) -> Result<(), ExecError> {
        for group in messages.chunks(GROUP) {
            result::group_start().map_err(failed)?;
            let enqueued = group.iter().try_for_each(|message| self.enqueue(message));
            // Ends even where a call failed: the thread's next calls must not fall into this group.
            let ended = result::group_end();
            enqueued.and(ended.map(|_| ())).map_err(failed)?;
        }
        Ok(())
    }

    fn enqueue(&self, message: &Message<'_>) -> Result<(), result::NcclError> {
        let Message { from, to, bytes } = *message;
        let kind = sys::ncclDataType_t::ncclUint8;
        // SAFETY: both ranges lie in allocations that outlive the step; streams are of the communicators' GPUs.
        unsafe {
            result::send(
                from.at as *const c_void,
                bytes,
                kind,
                to.device as i32,
                self.0[from.device],
                from.stream.cu_stream().cast(),
            )?;
            result::recv(
                to.at as *mut c_void,
                bytes,
                kind,
                from.device as i32,
                self.0[to.device],
                to.stream.cu_stream().cast(),
            )?;
        }
        Ok(())
    }
}
