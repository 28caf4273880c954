//! Launches as data: entry point, geometry, arguments.

use crate::{KernelId, Real};
use std::fmt;
use std::marker::PhantomData;

/// Threads of a block of every kernel, as `__launch_bounds__` says in the text.
const BLOCK: u32 = 256;
const WARP: i64 = 32;
/// Kernels stride over their grid, so more blocks than this only cost launch time.
const MAX_BLOCKS: i64 = 1 << 16;
/// Limit of the second and third grid dimension of every device.
const MAX_BLOCKS_YZ: i64 = 65_535;

/// Grid, block and dynamic shared memory of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks in x, y, z; at least one each.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Geometry {
    fn blocks(x: i64, y: i64, z: i64, shared_bytes: u32) -> Geometry {
        let clamp = |blocks: i64, most: i64| blocks.clamp(1, most) as u32;
        Geometry {
            grid: [
                clamp(x, MAX_BLOCKS),
                clamp(y, MAX_BLOCKS_YZ),
                clamp(z, MAX_BLOCKS_YZ),
            ],
            block: [BLOCK, 1, 1],
            shared_bytes,
        }
    }

    /// A warp for each of `rows`.
    pub(crate) fn warp_each(rows: i64) -> Geometry {
        let warps = i64::from(BLOCK) / WARP;
        Geometry::blocks(div_ceil(rows, warps), 1, 1, 0)
    }

    /// A warp for each of `rows` in each of `segments`.
    pub(crate) fn warp_each_in(rows: i64, segments: i64) -> Geometry {
        let warps = i64::from(BLOCK) / WARP;
        Geometry::blocks(div_ceil(rows, warps), segments, 1, 0)
    }

    /// A thread for each of `count`.
    pub(crate) fn thread_each(count: i64) -> Geometry {
        Geometry::blocks(div_ceil(count, i64::from(BLOCK)), 1, 1, 0)
    }

    /// Threads that move 16 bytes each, or four times that where there are enough of them to fill a GPU, for each of `runs`
    /// runs of up to `bytes`.
    pub(crate) fn copies(bytes: i64, runs: i64) -> Geometry {
        const ENOUGH: i64 = 1024;
        let blocks = |accesses: i64| div_ceil(bytes, 16 * i64::from(BLOCK) * accesses);
        Geometry::blocks(blocks(4).max(blocks(1).min(ENOUGH)), runs, 1, 0)
    }

    /// A block for each 32 columns of each of `groups`, with one float a thread of shared memory.
    pub(crate) fn columns(columns: i64, groups: i64) -> Geometry {
        Geometry::blocks(div_ceil(columns, WARP), groups, 1, 4 * BLOCK)
    }

    /// A block for each tile of 64 x 64 of `batch` products, with two tiles of depth 16 of floats.
    pub(crate) fn tiles(rows: i64, columns: i64, batch: i64) -> Geometry {
        const TILE: i64 = 64;
        const SHARED: u32 = 2 * 16 * 64 * 4;
        Geometry::blocks(div_ceil(rows, TILE), div_ceil(columns, TILE), batch, SHARED)
    }
}

fn div_ceil(count: i64, by: i64) -> i64 {
    (count + by - 1) / by
}

/// A device address that a kernel reads elements of `T` from. `T` is [`Real`] for the launch's number type.
pub struct In<T>(u64, PhantomData<T>);
/// A device address that a kernel writes elements of `T` to (and may read).
pub struct Out<T>(u64, PhantomData<T>);

macro_rules! address {
    ($name:ident) => {
        impl<T> $name<T> {
            /// From a device address.
            pub fn at(address: u64) -> Self {
                $name(address, PhantomData)
            }
        }
        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<T> Copy for $name<T> {}
        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
        impl<T> Parameter for $name<T> {
            const KIND: char = 'p';
            fn arg(self) -> Arg {
                Arg::Pointer(self.0)
            }
        }
    };
}
address!(In);
address!(Out);

/// One argument, by value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// Device address; 0 where an optional one is absent.
    Pointer(u64),
    /// `long long`.
    I64(i64),
    /// `int`.
    I32(i32),
}

impl Arg {
    /// Address of the value, as `cuLaunchKernel` takes it. Valid as long as `self` is.
    pub fn as_ptr(&self) -> *const std::ffi::c_void {
        match self {
            Arg::Pointer(value) => std::ptr::from_ref(value).cast(),
            Arg::I64(value) => std::ptr::from_ref(value).cast(),
            Arg::I32(value) => std::ptr::from_ref(value).cast(),
        }
    }
}

/// A Rust type that stands for one parameter of a kernel.
pub trait Parameter {
    /// `p` pointer, `l` 64-bit integer, `i` 32-bit integer.
    const KIND: char;
    /// Its value.
    fn arg(self) -> Arg;
}

impl<T> Parameter for Option<In<T>> {
    const KIND: char = 'p';
    fn arg(self) -> Arg {
        Arg::Pointer(self.map_or(0, |pointer| pointer.0))
    }
}
impl Parameter for i64 {
    const KIND: char = 'l';
    fn arg(self) -> Arg {
        Arg::I64(self)
    }
}
impl Parameter for i32 {
    const KIND: char = 'i';
    fn arg(self) -> Arg {
        Arg::I32(self)
    }
}
impl Parameter for bool {
    const KIND: char = 'i';
    fn arg(self) -> Arg {
        Arg::I32(i32::from(self))
    }
}

/// All that a launcher needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Which kernel.
    pub kernel: KernelId,
    /// Which number type; plain kernels have one instance, under fp32.
    pub real: Real,
    /// Grid, block, shared memory.
    pub geometry: Geometry,
    /// In the order of the kernel's parameters.
    pub args: Vec<Arg>,
}

impl Launch {
    /// Name of the entry point, e.g. `encode_f16`.
    pub fn entry(&self) -> &'static str {
        self.kernel.entry(self.real)
    }
}

/// The named arguments of one kernel.
pub trait Arguments {
    /// Which kernel.
    const KERNEL: KernelId;
    /// Kinds of its parameters in order, as [`Parameter::KIND`].
    fn signature() -> String
    where
        Self: Sized;
    /// The launch for tensors of `real`.
    fn launch(&self, real: Real) -> Launch;
}
