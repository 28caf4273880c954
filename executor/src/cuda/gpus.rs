//! The GPUs of one box: ranks are dealt over them in contiguous blocks, as equal as can be.

use super::compiler::Compiler;
use super::device::{self, Device};
use super::nccl::Nccl;
use super::{Settings, Unavailable};
use crate::ExecError;
use cudarc::driver::CudaContext;
use moeplan_kernels::{Module, Real};

/// GPUs, and what joins them.
pub(super) struct Gpus {
    /// Dropped before the contexts that its communicators belong to.
    nccl: Option<Nccl>,
    devices: Vec<Device>,
    compiler: Compiler,
}

/// Whether the driver's and NVRTC's libraries are there; cudarc panics if they are used and are not.
#[allow(unsafe_code, reason = "opening a library runs its initialisers")]
fn libraries() -> (bool, bool) {
    // SAFETY: NVIDIA's libraries may be opened and closed at any time.
    unsafe {
        (
            cudarc::driver::sys::is_culib_present(),
            cudarc::nvrtc::sys::is_culib_present(),
        )
    }
}

impl Gpus {
    /// The GPUs that `settings` ask for.
    ///
    /// # Errors
    /// What is missing on this machine.
    pub(super) fn open(settings: &Settings) -> Result<Gpus, Unavailable> {
        let devices = settings.devices.get();
        let missing = |missing: String| Unavailable {
            missing,
            looked_for: match devices {
                1 => "libcuda.so of NVIDIA's driver, a GPU, libnvrtc.so of CUDA 12 or 13",
                _ => {
                    "libcuda.so of NVIDIA's driver, GPUs, libnvrtc.so of CUDA 12 or 13, libnccl.so"
                }
            },
        };
        let (driver, nvrtc) = libraries();
        if !driver {
            return Err(missing("libcuda.so is not on this machine".into()));
        }
        if !nvrtc {
            return Err(missing("libnvrtc.so is not on this machine".into()));
        }
        if devices > 1 && !Nccl::is_present() {
            return Err(missing(
                "libnccl.so, which joins several GPUs, is not on this machine".into(),
            ));
        }
        let ordinals = settings.ordinal..settings.ordinal + devices;
        let there = CudaContext::device_count().unwrap_or(0);
        if ordinals.len() > 1 && ordinals.end > there as usize {
            return Err(missing(format!(
                "{devices} GPUs from number {} on, where the machine has {there}",
                settings.ordinal
            )));
        }
        let open = |ordinal: usize| {
            Device::new(ordinal, !settings.without_blas).map_err(|error| {
                missing(device::refused(&format!("GPU {ordinal}"), error).to_string())
            })
        };
        let devices = ordinals.clone().map(open).collect::<Result<Vec<_>, _>>()?;
        let nccl = (devices.len() > 1)
            .then(|| Nccl::new(ordinals))
            .transpose()
            .map_err(|error| missing(error.to_string()))?;
        Ok(Gpus {
            nccl,
            devices,
            compiler: Compiler::new(settings.cache.clone()),
        })
    }

    /// All of them.
    pub(super) fn all(&self) -> &[Device] {
        &self.devices
    }

    /// The first, on which a gate may choose before a step.
    pub(super) fn first(&self) -> &Device {
        &self.devices[0]
    }

    /// Compiles and loads the kernels of a number type, and the gate's.
    pub(super) fn prepare(&mut self, real: Real) -> Result<(), ExecError> {
        for real in [Real::F32, real] {
            for &module in Module::ALL {
                if module.reals().contains(&real) {
                    for device in &mut self.devices {
                        device.prepare(&mut self.compiler, module, real)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Deals `world` ranks over the GPUs.
    ///
    /// # Errors
    /// Fewer ranks than GPUs.
    pub(super) fn deal(&self, world: usize) -> Result<Dealt<'_>, ExecError> {
        if world < self.devices.len() {
            let expected = format!("at most one a rank, which are {world}");
            return Err(ExecError::input("devices", expected, self.devices.len()));
        }
        Ok(Dealt { gpus: self, world })
    }
}

/// Which GPU has which ranks.
#[derive(Clone, Copy)]
pub(super) struct Dealt<'a> {
    gpus: &'a Gpus,
    /// Ranks.
    pub(super) world: usize,
}

impl<'a> Dealt<'a> {
    /// Number of GPUs.
    pub(super) fn devices(self) -> usize {
        self.gpus.devices.len()
    }

    /// Number of the GPU that `rank` is on.
    pub(super) fn device_of(self, rank: usize) -> usize {
        rank * self.devices() / self.world
    }

    /// The GPU that `rank` is on.
    pub(super) fn of(self, rank: usize) -> &'a Device {
        &self.gpus.devices[self.device_of(rank)]
    }

    /// The first rank of every GPU.
    pub(super) fn first_ranks(self) -> impl Iterator<Item = usize> {
        (0..self.devices()).map(move |device| (device * self.world).div_ceil(self.devices()))
    }

    /// Waits for everything on every GPU.
    pub(super) fn synchronize(self) -> Result<(), ExecError> {
        self.gpus.devices.iter().try_for_each(Device::synchronize)
    }

    /// What joins the GPUs, if there are several.
    pub(super) fn nccl(self) -> Option<&'a Nccl> {
        self.gpus.nccl.as_ref()
    }
}
