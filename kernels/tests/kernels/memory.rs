//! Where kernels run: on the host build, or on a GPU where `MOEPLAN_KERNELS_ON=gpu` says so.

use crate::gpu;
use moeplan_kernels::{Launch, host};

/// The setting: `host` (as if unset) or `gpu`.
const SETTING: &str = "MOEPLAN_KERNELS_ON";

/// Device memory, and what runs kernels on it. What goes wrong fails the test.
pub(crate) trait Memory {
    /// Allocates bytes that read as NaN.
    fn allocate(&mut self, bytes: usize) -> u64;
    /// All bytes of the allocation at `address`.
    fn read(&mut self, address: u64) -> Vec<u8>;
    /// Overwrites the allocation at `address`, all of it.
    fn write(&mut self, address: u64, bytes: &[u8]);
    /// Runs a launch to its end, and checks what can be checked of it.
    fn launch(&mut self, launch: &Launch);
}

/// Whether kernels run on a GPU.
pub(crate) fn on_gpu() -> bool {
    match std::env::var(SETTING).as_deref() {
        Err(_) | Ok("host") => false,
        Ok("gpu") => true,
        Ok(other) => panic!("{SETTING}={other}: has to be host or gpu"),
    }
}

/// For tests of the host build itself: with a GPU they have nothing to say.
pub(crate) fn skipped() -> bool {
    if on_gpu() {
        println!("SKIPPED: a test of the host build, and {SETTING}=gpu");
    }
    on_gpu()
}

/// Memory that the setting says. `order` is that of the host build's threads; a GPU has its own.
pub(crate) fn memory(order: u32) -> Box<dyn Memory> {
    match on_gpu() {
        true => Box::new(gpu::Memory::default()),
        false => Box::new(Host {
            memory: host::Memory::default(),
            order,
        }),
    }
}

/// The host build's memory; launches run under the race check.
struct Host {
    memory: host::Memory,
    order: u32,
}

impl Memory for Host {
    fn allocate(&mut self, bytes: usize) -> u64 {
        self.memory.allocate(bytes as u64)
    }

    fn read(&mut self, address: u64) -> Vec<u8> {
        self.memory.bytes(address).to_vec()
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        self.memory.bytes(address).copy_from_slice(bytes);
    }

    fn launch(&mut self, launch: &Launch) {
        let how = host::Run {
            order: self.order,
            threads: 1,
            races: true,
        };
        self.memory
            .launch(launch, how)
            .unwrap_or_else(|fault| panic!("{fault}"));
    }
}
