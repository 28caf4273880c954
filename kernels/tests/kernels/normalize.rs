//! Vectors at a given length, and their backward.

use crate::device::{Case, Device, assert_close, case, cases, input, output};
use moeplan_kernels::{Normalize, NormalizeGradient, Real};
use proptest::prelude::*;
use rand::Rng;

/// Where the channels of a vector lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// One after the other.
    Rows,
    /// One below the other.
    Columns,
}

/// Vectors in FP64, whatever they lie like.
struct Vectors {
    lie: Lie,
    count: usize,
    channels: usize,
}

impl Vectors {
    fn strides(&self) -> (usize, usize) {
        match self.lie {
            Lie::Rows => (self.channels, 1),
            Lie::Columns => (1, self.count),
        }
    }

    fn read(&self, values: &[f32], vector: usize) -> Vec<f64> {
        let (by_vector, by_channel) = self.strides();
        let at = |c| f64::from(values[vector * by_vector + c * by_channel]);
        (0..self.channels).map(at).collect()
    }

    fn write(&self, into: &mut [f64], vector: usize, values: &[f64]) {
        let (by_vector, by_channel) = self.strides();
        for (c, value) in values.iter().enumerate() {
            into[vector * by_vector + c * by_channel] = *value;
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn normalize(
    case: Case,
    vectors: &Vectors,
    temperature: Option<f32>,
    zero: Option<usize>,
    in_place: bool,
) {
    let case = Case {
        real: Real::F32,
        ..case
    };
    let mut device = Device::new(case);
    let (by_vector, by_channel) = vectors.strides();
    let elements = vectors.count * vectors.channels;
    let mut x: Vec<f32> = (0..elements)
        .map(|_| device.rng.random_range(-3.0..3.0))
        .collect();
    if let Some(vector) = zero {
        (0..vectors.channels).for_each(|c| x[vector * by_vector + c * by_channel] = 0.0);
    }
    let dy = device.random(elements);
    let temperature_at = temperature.map(|value| device.f32s(&[value]));
    let given = || temperature_at.map(input);
    let x_at = device.f32s(&x);
    let y_at = match in_place {
        true => x_at,
        false => device.allocate(elements * 4),
    };
    let factors_at = device.allocate(vectors.count * 4);
    let shape = (vectors.count as i64, vectors.channels as i64);
    let strides = (by_vector as i64, by_channel as i64);
    device.launch(&Normalize {
        from: input(x_at),
        temperature: given(),
        to: output(y_at),
        factors: output(factors_at),
        num_vectors: shape.0,
        channels: shape.1,
        vector_stride: strides.0,
        channel_stride: strides.1,
    });
    let dy_at = device.f32s(&dy);
    let dx_at = match in_place {
        true => dy_at,
        false => device.allocate(elements * 4),
    };
    let dots_at = device.allocate(vectors.count * 4);
    device.launch(&NormalizeGradient {
        normalized: input(y_at),
        factors: input(factors_at),
        temperature: given(),
        normalized_gradient: input(dy_at),
        gradient: output(dx_at),
        dots: output(dots_at),
        num_vectors: shape.0,
        channels: shape.1,
        vector_stride: strides.0,
        channel_stride: strides.1,
    });

    let most = 100.0_f64.ln();
    let length = temperature.map_or(1.0, |t| f64::from(t).min(most).exp());
    let learns = temperature.is_some_and(|t| f64::from(t) < most);
    let (mut y, mut dx) = (vec![0.0; elements], vec![0.0; elements]);
    let (mut dots, mut terms) = (Vec::new(), vec![0.0; elements]);
    for vector in 0..vectors.count {
        let (x, dy) = (vectors.read(&x, vector), vectors.read(&dy, vector));
        let factor = length / dot(&x, &x).sqrt().max(1e-12);
        let of_vector: Vec<f64> = x.iter().map(|x| x * factor).collect();
        let along = dot(&of_vector, &dy);
        let back = of_vector.iter().zip(&dy);
        let back: Vec<f64> = back
            .map(|(y, dy)| factor * (dy - y * along / (length * length)))
            .collect();
        vectors.write(&mut terms, vector, &vec![factor; vectors.channels]);
        vectors.write(&mut y, vector, &of_vector);
        vectors.write(&mut dx, vector, &back);
        dots.push(if learns { along } else { 0.0 });
    }
    assert_close(Real::F32, &device.read_f32s(y_at), &y, &[length], "y");
    assert_close(Real::F32, &device.read_f32s(dx_at), &dx, &terms, "dx");
    let scale = [length * vectors.channels as f64];
    assert_close(Real::F32, &device.read_f32s(dots_at), &dots, &scale, "dots");
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn vectors_get_their_length_and_differentiate(
        case in case(),
        lie in prop_oneof![Just(Lie::Rows), Just(Lie::Columns)],
        count in 1usize..40,
        channels in prop_oneof![1usize..40, Just(64), Just(256)],
        temperature in prop_oneof![Just(None), (-2.0f32..4.0).prop_map(Some), Just(Some(9.0))],
        zero in prop_oneof![Just(None), (0usize..40).prop_map(Some)],
        in_place: bool,
    ) {
        let zero = zero.filter(|&vector| vector < count);
        normalize(case, &Vectors { lie, count, channels }, temperature, zero, in_place);
    }
}
