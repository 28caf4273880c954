//! The expert FFN's passes and products over runs of rows.

use crate::device::{Case, Device, assert_close, case, cases, input, output, round};
use moeplan_kernels::{
    Activation, ActivationGradient, Bias, BiasGradient, BiasRun, ExpertSlices, Gemm, Product,
    SavedRun, Slice, SliceSums,
};
use proptest::prelude::*;

/// Rows in runs, each of an expert; some experts have several runs, some none, some runs are empty.
#[derive(Debug, Clone)]
struct Runs {
    /// (expert, first row, rows).
    runs: Vec<(usize, usize, usize)>,
    experts: usize,
    total: usize,
}

impl Runs {
    fn longest(&self) -> i64 {
        self.runs.iter().map(|run| run.2 as i64).max().unwrap_or(0)
    }
    fn rows_of(&self, expert: usize) -> impl Iterator<Item = usize> + '_ {
        let own = self.runs.iter().filter(move |run| run.0 == expert);
        own.flat_map(|run| run.1..run.1 + run.2)
    }
    fn expert_of(&self, row: usize) -> usize {
        let holds = |run: &&(usize, usize, usize)| (run.1..run.1 + run.2).contains(&row);
        self.runs.iter().find(holds).unwrap().0
    }
}

fn runs() -> impl Strategy<Value = Runs> {
    let lengths = prop::collection::vec(
        (
            0usize..4,
            prop_oneof![Just(0usize), 1usize..50, 1usize..400],
        ),
        1..7,
    );
    lengths.prop_map(|lengths| {
        let mut at = 0;
        let runs = lengths
            .into_iter()
            .map(|(expert, rows)| {
                at += rows;
                (expert, at - rows, rows)
            })
            .collect();
        Runs {
            runs,
            experts: 4,
            total: at,
        }
    })
}

/// Columns: all, and those that have a bias.
#[derive(Debug, Clone, Copy)]
struct Columns {
    all: usize,
    first: usize,
    with_bias: usize,
}

fn columns() -> impl Strategy<Value = Columns> {
    (0usize..40, 1usize..80, 0usize..40).prop_map(|(first, with_bias, rest)| Columns {
        all: first + with_bias + rest,
        first,
        with_bias,
    })
}

fn bias(case: Case, s: &Runs, c: Columns, gap: usize, accumulate: bool) {
    let mut device = Device::new(case);
    let stride = c.with_bias + gap;
    let (x, b) = (
        device.random(s.total * c.all),
        device.random(s.experts * stride),
    );
    let (values, biases) = (device.reals(&x), device.reals(&b));
    let run = |&(expert, first, rows): &(usize, usize, usize)| BiasRun {
        first: first as i64,
        rows: rows as i64,
        bias: (expert * stride) as i64,
    };
    let table: Vec<BiasRun> = s.runs.iter().map(run).collect();
    let table = device.i64s(&BiasRun::table(&table));
    device.launch(&Bias {
        values: output(values),
        biases: input(biases),
        runs: input(table),
        num_runs: s.runs.len() as i32,
        columns: c.all as i64,
        first_column: c.first as i64,
        bias_columns: c.with_bias as i64,
        longest: s.longest(),
    });
    let with_bias = c.first..c.first + c.with_bias;
    let want: Vec<f32> = (0..s.total * c.all)
        .map(|i| match i % c.all {
            column if with_bias.contains(&column) => round(
                case.real,
                x[i] + b[s.expert_of(i / c.all) * stride + column - c.first],
            ),
            _ => x[i],
        })
        .collect();
    assert_eq!(device.read_reals(values), want);

    let before = device.random(s.experts * stride);
    let (x_at, gradients) = (device.reals(&x), device.reals(&before));
    let mut slices = Vec::new();
    let experts: Vec<ExpertSlices> = (0..s.experts)
        .map(|expert| {
            let first = slices.len() as i64;
            for run in s.runs.iter().filter(|run| run.0 == expert) {
                slices.extend(Slice::of(run.1 as i64, run.2 as i64));
            }
            ExpertSlices {
                first,
                slices: slices.len() as i64 - first,
                gradient: (expert * stride) as i64,
            }
        })
        .collect();
    let sums = device.allocate(slices.len() * c.with_bias * 4);
    let (rows, table) = (
        device.i64s(&Slice::table(&slices)),
        device.i64s(&ExpertSlices::table(&experts)),
    );
    device.launch(&SliceSums {
        values: input(x_at),
        sums: output(sums),
        slices: input(rows),
        num_slices: slices.len() as i32,
        columns: c.all as i64,
        first_column: c.first as i64,
        bias_columns: c.with_bias as i64,
    });
    device.launch(&BiasGradient {
        sums: input(sums),
        gradients: output(gradients),
        experts: input(table),
        num_experts: s.experts as i32,
        bias_columns: c.with_bias as i64,
        accumulate,
    });
    let want: Vec<f64> = (0..s.experts * stride)
        .map(|i| {
            let (expert, channel, start) = (i / stride, i % stride, f64::from(before[i]));
            if channel >= c.with_bias {
                return start; // between two experts: untouched
            }
            let cell = |row: usize| f64::from(x[row * c.all + c.first + channel]);
            s.rows_of(expert).map(cell).sum::<f64>() + if accumulate { start } else { 0.0 }
        })
        .collect();
    let got = device.read_reals(gradients);
    assert_close(
        case.real,
        &got,
        &want,
        &[s.total as f64 / 10.0 + 1.0],
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

    // The saved values lie in two buffers, the second part first.
    let saved = if kind == 0 {
        device.read_reals(values)
    } else {
        x.clone()
    };
    let cut = count / 3;
    let gradient = device.reals(&g);
    let parts = [device.reals(&saved[..cut]), device.reals(&saved[cut..])];
    let runs = [
        SavedRun {
            saved: parts[1] as i64,
            at: cut as i64,
            elements: (count - cut) as i64,
        },
        SavedRun {
            saved: parts[0] as i64,
            at: 0,
            elements: cut as i64,
        },
    ];
    let table = device.i64s(&SavedRun::table(&runs));
    device.launch(&ActivationGradient {
        gradient: output(gradient),
        runs: input(table),
        num_runs: 2,
        kind,
        longest: (count - cut) as i64,
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

/// Row-major (rows, columns) with `gap` elements between rows, or its transpose stored so.
#[derive(Debug, Clone, Copy)]
struct Stored {
    columns: usize,
    gap: usize,
    transposed: bool,
}

impl Stored {
    fn new(columns: usize, rows: usize, gap: usize, transposed: bool) -> Stored {
        Stored {
            columns: if transposed { rows } else { columns },
            gap,
            transposed,
        }
    }
    fn stride(&self) -> usize {
        self.columns + self.gap
    }
    fn at(&self, row: usize, column: usize) -> usize {
        let (row, column) = if self.transposed {
            (column, row)
        } else {
            (row, column)
        };
        row * self.stride() + column
    }
    fn strides(&self) -> (i64, i64) {
        let stride = self.stride() as i64;
        if self.transposed {
            (1, stride)
        } else {
            (stride, 1)
        }
    }
}

/// One product of a list: shape, which of the results it goes to, whether it is added.
type Shape = (usize, usize, usize, bool, bool);

/// A list of products of any shape, some in chains on one result.
fn gemm(case: Case, shapes: &[Shape], links: usize, gap: usize, accumulate: bool) {
    let mut device = Device::new(case);
    let mut products = Vec::new();
    let mut results = Vec::new();
    for &(m, n, k, a_transposed, b_transposed) in shapes {
        let c = Stored::new(n, m, gap, false);
        let before = device.random(m * c.stride());
        let c_at = device.reals(&before);
        let mut want: Vec<f64> = before.iter().map(|&v| f64::from(v)).collect();
        for link in 0..links {
            let (a, b) = (
                Stored::new(k, m, gap, a_transposed),
                Stored::new(n, k, gap, b_transposed),
            );
            let a_rows = if a_transposed { k } else { m };
            let b_rows = if b_transposed { n } else { k };
            let (x, y) = (
                device.random(a_rows * a.stride()),
                device.random(b_rows * b.stride()),
            );
            let adds = accumulate || link > 0;
            for row in 0..m {
                for column in 0..n {
                    let sum: f64 = (0..k)
                        .map(|i| f64::from(x[a.at(row, i)]) * f64::from(y[b.at(i, column)]))
                        .sum();
                    let cell = &mut want[c.at(row, column)];
                    *cell = sum + if adds { *cell } else { 0.0 };
                }
            }
            products.push(Product {
                a: device.reals(&x) as i64,
                b: device.reals(&y) as i64,
                c: c_at as i64,
                m: m as i64,
                n: n as i64,
                k: k as i64,
                a_row_stride: a.strides().0,
                a_column_stride: a.strides().1,
                b_row_stride: b.strides().0,
                b_column_stride: b.strides().1,
                c_row_stride: c.stride() as i64,
                accumulate: i64::from(adds),
            });
        }
        results.push((c_at, want, (links * k) as f64 / 4.0 + 2.0));
    }
    // As lowering gives them: links of different chains in turn.
    let order: Vec<usize> = (0..links)
        .flat_map(|link| (0..shapes.len()).map(move |i| i * links + link))
        .collect();
    let (products, chains) = Product::chained(order.into_iter().map(|i| products[i]).collect());
    assert_eq!(chains.len(), shapes.len() + 1);
    let (table, heads) = (
        device.i64s(&Product::table(&products)),
        device.i64s(&chains),
    );
    device.launch(&Gemm {
        products: input(table),
        chains: input(heads),
        num_chains: shapes.len() as i32,
        rows: shapes.iter().map(|s| s.0 as i64).max().unwrap(),
        columns: shapes.iter().map(|s| s.1 as i64).max().unwrap(),
    });
    for (at, want, scale) in results {
        let got = device.read_reals(at);
        assert_close(case.real, &got, &want, &[scale], "product");
    }
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn bias_and_its_gradient(
        case in case(), s in runs(), c in columns(), gap in 0usize..10, accumulate: bool,
    ) {
        bias(case, &s, c, gap, accumulate);
    }

    #[test]
    fn activation_and_its_gradient(case in case(), count in prop_oneof![3usize..700, 3usize..20_000], kind in 0i32..2) {
        activation(case, count, kind);
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn products_match_the_naive_sum(
        case in case(),
        shapes in prop::collection::vec((1usize..90, 1usize..90, 0usize..40, any::<bool>(), any::<bool>()), 1..4),
        links in 1usize..4,
        gap in 0usize..4,
        accumulate: bool,
    ) {
        gemm(case, &shapes, links, gap, accumulate);
    }
}
