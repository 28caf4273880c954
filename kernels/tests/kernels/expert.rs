//! The expert FFN's passes and products over padded and uneven segments.

use crate::device::{Case, Device, assert_close, case, input, output, round};
use moeplan_kernels::{
    Activation, ActivationGradient, Bias, BiasGradient, GemmNn, GemmNt, GemmTn, Real,
};
use proptest::prelude::*;
use rand::Rng;

/// Segments of rows, some of them empty where uneven.
#[derive(Debug, Clone)]
struct Segments {
    starts: Vec<usize>,
    experts: usize,
    uneven: bool,
}

impl Segments {
    fn total(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }
    fn count(&self) -> usize {
        self.starts.len() - 1
    }
    fn longest(&self) -> i64 {
        self.starts
            .windows(2)
            .map(|w| (w[1] - w[0]) as i64)
            .max()
            .unwrap()
    }
    fn rows_of(&self, expert: usize) -> impl Iterator<Item = usize> + '_ {
        (expert..self.count())
            .step_by(self.experts)
            .flat_map(|segment| self.starts[segment]..self.starts[segment + 1])
    }
    fn expert_of(&self, row: usize) -> usize {
        (0..self.experts)
            .find(|&e| self.rows_of(e).any(|r| r == row))
            .unwrap()
    }
    fn starts_at(&self, device: &mut Device) -> Option<moeplan_kernels::In<i64>> {
        let starts: Vec<i64> = self.starts.iter().map(|&s| s as i64).collect();
        self.uneven.then(|| input(device.i64s(&starts)))
    }
}

fn segments() -> impl Strategy<Value = Segments> {
    let padded = (1usize..4, 1usize..4, 1usize..40).prop_map(|(experts, blocks, rows)| Segments {
        starts: (0..=experts * blocks).map(|s| s * rows).collect(),
        experts,
        uneven: false,
    });
    let uneven =
        prop::collection::vec(prop_oneof![Just(0usize), 1usize..80], 1..5).prop_map(|rows| {
            let mut starts = vec![0];
            starts.extend(rows.iter().scan(0, |sum, rows| {
                *sum += rows;
                Some(*sum)
            }));
            Segments {
                starts,
                experts: rows.len(),
                uneven: true,
            }
        });
    prop_oneof![padded, uneven]
}

fn bias(case: Case, s: &Segments, channels: usize, gap: usize, accumulate: bool) {
    let mut device = Device::new(case);
    let stride = channels + gap;
    let (x, b) = (
        device.random(s.total() * channels),
        device.random(s.experts * stride),
    );
    let starts = s.starts_at(&mut device);
    let (values, biases) = (device.reals(&x), device.reals(&b));
    device.launch(&Bias {
        values: output(values),
        biases: input(biases),
        starts,
        rows_per_segment: s.longest(),
        segments: s.count() as i32,
        experts: s.experts as i32,
        channels: channels as i64,
        bias_stride: stride as i64,
    });
    let want: Vec<f32> = (0..s.total() * channels)
        .map(|i| {
            round(
                case.real,
                x[i] + b[s.expert_of(i / channels) * stride + i % channels],
            )
        })
        .collect();
    assert_eq!(device.read_reals(values), want);

    let before = device.random(s.experts * stride);
    let (x_at, gradients) = (device.reals(&x), device.reals(&before));
    device.launch(&BiasGradient {
        values: input(x_at),
        gradients: output(gradients),
        starts,
        rows_per_segment: s.longest(),
        segments: s.count() as i32,
        experts: s.experts as i32,
        channels: channels as i64,
        gradient_stride: stride as i64,
        accumulate,
    });
    let want: Vec<f64> = (0..s.experts * stride)
        .map(|i| {
            let (expert, channel) = (i / stride, i % stride);
            let start = f64::from(before[i]);
            if channel >= channels {
                return start; // between two experts: untouched
            }
            let sum: f64 = s
                .rows_of(expert)
                .map(|row| f64::from(x[row * channels + channel]))
                .sum();
            sum + if accumulate { start } else { 0.0 }
        })
        .collect();
    let got = device.read_reals(gradients);
    assert_close(
        case.real,
        &got,
        &want,
        &[s.total() as f64 / 10.0 + 1.0],
        "bias gradient",
    );
}

fn erf(x: f64) -> f64 {
    // Series for small, continued fraction for large arguments: to 1e-12.
    if x.abs() < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let mut fraction = 0.0;
    for n in (1..60).rev() {
        fraction = f64::from(n) / 2.0 / (x.abs() + fraction);
    }
    let complement = (-x * x).exp() / (x.abs() + fraction) / std::f64::consts::PI.sqrt();
    x.signum() * (1.0 - complement)
}

fn activate(v: f64, kind: i32) -> f64 {
    if kind == 0 {
        v.max(0.0)
    } else {
        0.5 * v * (1.0 + erf(v / std::f64::consts::SQRT_2))
    }
}

fn activation(case: Case, count: usize, kind: i32) {
    let mut device = Device::new(case);
    let x: Vec<f32> = device
        .random(count)
        .iter()
        .map(|v| round(case.real, v * 4.0))
        .collect();
    let g = device.random(count);
    let values = device.reals(&x);
    device.launch(&Activation {
        values: output(values),
        count: count as i64,
        kind,
    });
    let want: Vec<f64> = x.iter().map(|&v| activate(f64::from(v), kind)).collect();
    let got = device.read_reals(values);
    assert_close(case.real, &got, &want, &[1.0], "activation");

    let saved = if kind == 0 { values } else { device.reals(&x) };
    let gradient = device.reals(&g);
    device.launch(&ActivationGradient {
        saved: input(saved),
        gradient: output(gradient),
        count: count as i64,
        kind,
    });
    let h = 1e-6;
    let want: Vec<f64> = x
        .iter()
        .zip(&g)
        .map(|(&v, &g)| {
            let v = f64::from(v);
            let slope = match kind {
                0 => f64::from(u8::from(v > 0.0)),
                _ => (activate(v + h, 1) - activate(v - h, 1)) / (2.0 * h),
            };
            f64::from(g) * slope
        })
        .collect();
    let got = device.read_reals(gradient);
    assert_close(case.real, &got, &want, &[1.0], "activation gradient");
}

fn gemm(case: Case, s: &Segments, n: usize, k: usize, gap: usize, accumulate: bool) {
    let mut device = Device::new(case);
    let rows = s.total();
    let stride = n * k + gap;
    let (a, b, c) = (
        device.random(rows * k),
        device.random(s.experts * stride),
        device.random(rows * n),
    );
    let starts = s.starts_at(&mut device);
    let (a_at, b_at) = (device.reals(&a), device.reals(&b));
    let (segments, experts) = (s.count() as i32, s.experts as i32);
    let scale = [k as f64 / 4.0 + 1.0];
    for transposed in [false, true] {
        let c_at = device.reals(&c);
        let nn = GemmNn {
            a: input(a_at),
            b: input(b_at),
            c: output(c_at),
            starts,
            rows_per_segment: s.longest(),
            segments,
            experts,
            n: n as i64,
            k: k as i64,
            matrix_stride: stride as i64,
            accumulate,
        };
        if transposed {
            let GemmNn {
                a,
                b,
                c,
                starts,
                rows_per_segment,
                segments,
                experts,
                n,
                k,
                matrix_stride,
                accumulate,
            } = nn;
            device.launch(&GemmNt {
                a,
                b,
                c,
                starts,
                rows_per_segment,
                segments,
                experts,
                n,
                k,
                matrix_stride,
                accumulate,
            });
        } else {
            device.launch(&nn);
        }
        let want: Vec<f64> = (0..rows * n)
            .map(|i| {
                let (row, column) = (i / n, i % n);
                let matrix = &b[s.expert_of(row) * stride..];
                let product = |j: usize| {
                    let weight = if transposed {
                        matrix[column * k + j]
                    } else {
                        matrix[j * n + column]
                    };
                    f64::from(a[row * k + j]) * f64::from(weight)
                };
                (0..k).map(product).sum::<f64>() + if accumulate { f64::from(c[i]) } else { 0.0 }
            })
            .collect();
        let got = device.read_reals(c_at);
        assert_close(
            case.real,
            &got,
            &want,
            &scale,
            if transposed { "A B^T" } else { "A B" },
        );
    }

    // A (rows, k)^T times C (rows, n), by expert.
    let before = device.random(s.experts * stride);
    let (c_at, w_at) = (device.reals(&c), device.reals(&before));
    device.launch(&GemmTn {
        a: input(a_at),
        b: input(c_at),
        c: output(w_at),
        starts,
        rows_per_segment: s.longest(),
        segments,
        experts,
        m: k as i64,
        n: n as i64,
        matrix_stride: stride as i64,
        accumulate,
    });
    let want: Vec<f64> = (0..s.experts * stride)
        .map(|i| {
            let (expert, within) = (i / stride, i % stride);
            if within >= n * k {
                return f64::from(before[i]);
            }
            let (row, column) = (within / n, within % n);
            let product = |r: usize| f64::from(a[r * k + row]) * f64::from(c[r * n + column]);
            s.rows_of(expert).map(product).sum::<f64>()
                + if accumulate {
                    f64::from(before[i])
                } else {
                    0.0
                }
        })
        .collect();
    let got = device.read_reals(w_at);
    assert_close(case.real, &got, &want, &[rows as f64 / 4.0 + 1.0], "A^T B");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn bias_and_its_gradient(
        case in case(), s in segments(), channels in 1usize..80, gap in 0usize..10, accumulate: bool,
    ) {
        bias(case, &s, channels, gap, accumulate);
    }

    #[test]
    fn activation_and_its_gradient(case in case(), count in 1usize..700, kind in 0i32..2) {
        activation(case, count, kind);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn products_match_the_naive_sum(
        case in case(), s in segments(), n in 1usize..90, k in 1usize..40, gap in 0usize..10, accumulate: bool,
    ) {
        gemm(case, &s, n, k, gap, accumulate);
    }
}

#[test]
fn products_repeat_bit_for_bit_whatever_the_thread_order() {
    let results: Vec<Vec<f32>> = (0..3)
        .map(|order| {
            let mut device = Device::new(Case {
                real: Real::F32,
                order,
                seed: 7,
            });
            let (rows, n, k) = (70usize, 33usize, 50usize);
            let (a, b) = (device.random(rows * k), device.random(k * n));
            let (a, b) = (device.reals(&a), device.reals(&b));
            let c = device.allocate(rows * n * 4);
            device.launch(&GemmNn {
                a: input(a),
                b: input(b),
                c: output(c),
                starts: None,
                rows_per_segment: rows as i64,
                segments: 1,
                experts: 1,
                n: n as i64,
                k: k as i64,
                matrix_stride: 0,
                accumulate: false,
            });
            let _ = device.rng.random::<u8>();
            device.read_reals(c)
        })
        .collect();
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}
