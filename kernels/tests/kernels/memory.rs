//! Where kernels run.

use moeplan_kernels::{Launch, host};

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

/// Memory of the host build, whose threads run in that order.
pub(crate) fn memory(order: u32) -> Box<dyn Memory> {
    Box::new(Host {
        memory: host::Memory::default(),
        order,
    })
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
