//! Numbers as a layer stores them. The host computes with FP32 numbers.

use half::slice::{HalfBitsSliceExt as _, HalfFloatSliceExt as _};
use half::{bf16, f16};
use moeplan_sim::spec::DType;

/// `values` as `dtype` stores them: to the nearest, ties to even.
pub fn to_bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::Fp32 | DType::Tf32 => bytemuck::cast_slice(values).to_vec(),
        DType::Fp16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            bytemuck::cast_slice(halves.reinterpret_cast()).to_vec()
        }
        DType::Bf16 => {
            let mut halves = vec![bf16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            bytemuck::cast_slice(halves.reinterpret_cast()).to_vec()
        }
    }
}

/// The inverse of [`to_bytes`]; bytes beyond the last whole number are left out.
pub fn from_bytes(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let words = || -> Vec<u16> {
        let pairs = bytes.as_chunks::<2>().0.iter();
        pairs.map(|pair| u16::from_ne_bytes(*pair)).collect()
    };
    match dtype {
        DType::Fp32 | DType::Tf32 => {
            let words = bytes.as_chunks::<4>().0.iter();
            words.map(|word| f32::from_ne_bytes(*word)).collect()
        }
        DType::Fp16 => words().reinterpret_cast::<f16>().to_f32_vec(),
        DType::Bf16 => words().reinterpret_cast::<bf16>().to_f32_vec(),
    }
}

/// `values` as they are once `dtype` has stored them.
pub fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    from_bytes(dtype, &to_bytes(dtype, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_the_nearest() {
        let third = [1.0 / 3.0, -2.0];
        assert_eq!(rounded(DType::Fp32, &third), third);
        assert_eq!(rounded(DType::Fp16, &third), [0.333_251_95, -2.0]);
        assert_eq!(rounded(DType::Bf16, &third), [0.333_984_38, -2.0]);
        assert_eq!(to_bytes(DType::Bf16, &third).len(), 4);
    }
}
