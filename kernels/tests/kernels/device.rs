//! Tensors in device memory, and random inputs.

use crate::gpu;
use crate::memory::{self, Memory};
use half::{bf16, f16};
use moeplan_kernels::{Arguments, In, Out, Real};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How one case runs: number type, order of the host build's threads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) real: Real,
    pub(crate) order: u32,
    pub(crate) seed: u64,
}

pub(crate) fn case() -> impl Strategy<Value = Case> {
    let real = prop_oneof![Just(Real::F32), Just(Real::F16), Just(Real::Bf16)];
    (real, 0u32..6, any::<u64>()).prop_map(|(real, order, seed)| Case { real, order, seed })
}

/// So many random cases. Where the GPU that was asked for is missing, a test fails here, once, not case by case.
pub(crate) fn cases(count: u32) -> ProptestConfig {
    let config = ProptestConfig::with_cases(count);
    if !memory::on_gpu() {
        return config;
    }
    gpu::check();
    ProptestConfig {
        // After a failed launch every smaller case would fail too, whatever it does.
        max_shrink_iters: 0,
        // The source is not on every machine that has a GPU.
        failure_persistence: None,
        ..config
    }
}

pub(crate) struct Device {
    memory: Box<dyn Memory>,
    case: Case,
    pub(crate) rng: ChaCha8Rng,
}

impl Device {
    pub(crate) fn new(case: Case) -> Device {
        let rng = ChaCha8Rng::seed_from_u64(case.seed);
        Device {
            memory: memory::memory(case.order),
            case,
            rng,
        }
    }

    /// Random numbers in [-1, 1) that the case's number type holds exactly.
    pub(crate) fn random(&mut self, count: usize) -> Vec<f32> {
        let real = self.case.real;
        (0..count)
            .map(|_| round(real, self.rng.random_range(-1.0..1.0)))
            .collect()
    }

    /// Uninitialised: reads as NaN.
    pub(crate) fn allocate(&mut self, bytes: usize) -> u64 {
        self.memory.allocate(bytes)
    }

    pub(crate) fn zeroed(&mut self, bytes: usize) -> u64 {
        self.bytes(&vec![0; bytes])
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let address = self.allocate(bytes.len());
        self.memory.write(address, bytes);
        address
    }

    pub(crate) fn f32s(&mut self, values: &[f32]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        self.bytes(&bytes)
    }

    pub(crate) fn i32s(&mut self, values: &[i32]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        self.bytes(&bytes)
    }

    pub(crate) fn i64s(&mut self, values: &[i64]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        self.bytes(&bytes)
    }

    /// In the case's number type.
    pub(crate) fn reals(&mut self, values: &[f32]) -> u64 {
        let bytes: Vec<u8> = match self.case.real {
            Real::F32 => values.iter().flat_map(|v| v.to_ne_bytes()).collect(),
            Real::F16 => values
                .iter()
                .flat_map(|&v| f16::from_f32(v).to_ne_bytes())
                .collect(),
            Real::Bf16 => values
                .iter()
                .flat_map(|&v| bf16::from_f32(v).to_ne_bytes())
                .collect(),
        };
        self.bytes(&bytes)
    }

    pub(crate) fn real_bytes(&self, count: usize) -> usize {
        count * self.case.real.bytes() as usize
    }

    pub(crate) fn read_bytes(&mut self, address: u64) -> Vec<u8> {
        self.memory.read(address)
    }

    pub(crate) fn read_f32s(&mut self, address: u64) -> Vec<f32> {
        let values: Vec<f32> = chunks(&self.read_bytes(address))
            .map(f32::from_ne_bytes)
            .collect();
        assert!(values.iter().all(|v| v.is_finite()), "non-finite result");
        values
    }

    pub(crate) fn read_i32s(&mut self, address: u64) -> Vec<i32> {
        chunks(&self.read_bytes(address))
            .map(i32::from_ne_bytes)
            .collect()
    }

    pub(crate) fn read_i64s(&mut self, address: u64) -> Vec<i64> {
        chunks(&self.read_bytes(address))
            .map(i64::from_ne_bytes)
            .collect()
    }

    /// From the case's number type; all must be finite.
    pub(crate) fn read_reals(&mut self, address: u64) -> Vec<f32> {
        let bytes = self.read_bytes(address);
        let values: Vec<f32> = match self.case.real {
            Real::F32 => chunks(&bytes).map(f32::from_ne_bytes).collect(),
            Real::F16 => chunks(&bytes)
                .map(|b| f16::from_ne_bytes(b).to_f32())
                .collect(),
            Real::Bf16 => chunks(&bytes)
                .map(|b| bf16::from_ne_bytes(b).to_f32())
                .collect(),
        };
        assert!(values.iter().all(|v| v.is_finite()), "non-finite result");
        values
    }

    /// Runs a kernel, with all checks that there are: every other case on a single block, as kernels stride over any grid.
    pub(crate) fn launch(&mut self, arguments: &impl Arguments) {
        let mut launch = arguments.launch(self.case.real);
        if self.case.seed.is_multiple_of(2) {
            launch.geometry.grid = [1; 3];
        }
        self.memory.launch(&launch);
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.chunks_exact(N).map(|chunk| chunk.try_into().unwrap())
}

pub(crate) fn input<T>(address: u64) -> In<T> {
    In::at(address)
}

pub(crate) fn output<T>(address: u64) -> Out<T> {
    Out::at(address)
}

/// To the nearest number of the type.
pub(crate) fn round(real: Real, value: f32) -> f32 {
    match real {
        Real::F32 => value,
        Real::F16 => f16::from_f32(value).to_f32(),
        Real::Bf16 => bf16::from_f32(value).to_f32(),
    }
}

/// Half a unit in the last place of 1.
pub(crate) fn epsilon(real: Real) -> f64 {
    match real {
        Real::F32 => 6e-8,
        Real::F16 => 4.9e-4,
        Real::Bf16 => 3.91e-3,
    }
}

/// `got` against `want`, each within one rounding of the type and the error of an fp32 sum whose terms have
/// the absolute sum `scale`.
pub(crate) fn assert_close(real: Real, got: &[f32], want: &[f64], scale: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let bound = epsilon(real) * want.abs() * 1.01 + 1e-5 * scale[i.min(scale.len() - 1)] + 1e-7;
        let error = (f64::from(got) - want).abs();
        assert!(
            error <= bound,
            "{what}[{i}]: got {got}, want {want}, error {error:e} over {bound:e}"
        );
    }
}

/// Routing of T tokens to E experts: distinct experts a token, scores, and rows with drops.
pub(crate) struct Routing {
    /// (T, k): row of a copy's slot.
    pub(crate) rows: Vec<i32>,
    pub(crate) scores: Vec<f32>,
    pub(crate) slots: usize,
}

/// Random distinct rows for a part of the copies; the rest are dropped. More slots than copies leave some empty.
pub(crate) fn routing(device: &mut Device, tokens: usize, top_k: usize) -> Routing {
    let copies = tokens * top_k;
    let slots = copies + device.rng.random_range(0..5);
    let mut order: Vec<i32> = (0..slots as i32).collect();
    for i in (1..slots).rev() {
        order.swap(i, device.rng.random_range(0..=i));
    }
    let rows = order[..copies]
        .iter()
        .map(|&row| if device.rng.random_bool(0.3) { -1 } else { row })
        .collect();
    let scores = (0..copies)
        .map(|_| device.rng.random_range(0.0..1.0))
        .collect();
    Routing {
        rows,
        scores,
        slots,
    }
}

impl Routing {
    /// Element offsets of the slots, as kernels take them.
    pub(crate) fn places(&self, model_dim: usize) -> Vec<i64> {
        let place = |&row: &i32| i64::from(row) * if row < 0 { 1 } else { model_dim as i64 };
        self.rows.iter().map(place).collect()
    }
}
