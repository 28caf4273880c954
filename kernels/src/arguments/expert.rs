//! The expert FFN over runs of rows.

use super::{kernel, table_row};
use crate::{Geometry, In, Out, Real};

table_row! {
    /// Rows that get one bias.
    BiasRun {
        /// First row.
        first,
        /// Rows.
        rows,
        /// Element offset of the bias.
        bias,
    }
}

kernel! {
    /// values[row, columns] += bias, in place.
    Bias {
        /// (rows, columns).
        values: Out<Real>,
        /// What offsets count from.
        biases: In<Real>,
        /// Table of [`BiasRun`].
        runs: In<i64>,
        /// Rows of it.
        num_runs: i32,
        /// Elements of a row.
        columns: i64,
        /// First column that has a bias.
        first_column: i64,
        /// Columns that have one.
        bias_columns: i64,
    }
    for_grid {
        /// Rows of the longest run.
        longest: i64,
    }
    |args| Geometry::warp_each_in(args.longest, i64::from(args.num_runs))
}

/// Most rows of a slice of [`SliceSums`]: enough slices to fill a GPU, few enough to be summed in turn.
pub const SLICE_ROWS: i64 = 128;

table_row! {
    /// Rows that are summed at once, at most [`SLICE_ROWS`].
    Slice {
        /// First row.
        first,
        /// Rows.
        rows,
    }
}

impl Slice {
    /// The slices of a run of rows.
    pub fn of(first: i64, rows: i64) -> impl Iterator<Item = Slice> {
        (0..(rows + SLICE_ROWS - 1) / SLICE_ROWS).map(move |slice| Slice {
            first: first + slice * SLICE_ROWS,
            rows: SLICE_ROWS.min(rows - slice * SLICE_ROWS),
        })
    }
}

kernel! {
    /// Column sums of every slice of rows.
    SliceSums {
        /// (rows, columns).
        values: In<Real>,
        /// (slices, bias columns).
        sums: Out<f32>,
        /// Table of [`Slice`].
        slices: In<i64>,
        /// Rows of it.
        num_slices: i32,
        /// Elements of a row.
        columns: i64,
        /// First column that has a bias.
        first_column: i64,
        /// Columns that have one.
        bias_columns: i64,
    }
    |args| Geometry::columns(args.bias_columns, i64::from(args.num_slices))
}

table_row! {
    /// Slices of one expert.
    ExpertSlices {
        /// First slice.
        first,
        /// Slices.
        slices,
        /// Element offset of the gradient.
        gradient,
    }
}

kernel! {
    /// Sums of every expert's slices; zero for one without.
    BiasGradient {
        /// (slices, bias columns), from [`SliceSums`].
        sums: In<f32>,
        /// What offsets count from.
        gradients: Out<Real>,
        /// Table of [`ExpertSlices`].
        experts: In<i64>,
        /// Rows of it.
        num_experts: i32,
        /// Columns that have a bias.
        bias_columns: i64,
        /// Add to what the gradient holds.
        accumulate: bool,
    }
    |args| Geometry::columns(args.bias_columns, i64::from(args.num_experts))
}

kernel! {
    /// values = act(values), in place.
    Activation {
        /// (count).
        values: Out<Real>,
        /// Elements.
        count: i64,
        /// 0 ReLU, 1 GELU.
        kind: i32,
    }
    |args| Geometry::copies(args.count * 4, 1)
}

table_row! {
    /// Saved values beside a part of the gradient.
    SavedRun {
        /// Address of the saved values.
        saved,
        /// Element offset in the gradient.
        at,
        /// Elements.
        elements,
    }
}

kernel! {
    /// gradient *= act'(saved): the output for ReLU, the input for GELU.
    ActivationGradient {
        /// What offsets count from.
        gradient: Out<Real>,
        /// Table of [`SavedRun`].
        runs: In<i64>,
        /// Rows of it.
        num_runs: i32,
        /// 0 ReLU, 1 GELU.
        kind: i32,
    }
    for_grid {
        /// Elements of the longest run.
        longest: i64,
    }
    |args| Geometry::copies(args.longest * 4, i64::from(args.num_runs))
}

table_row! {
    /// C (m, n) = A (m, k) B (k, n), added to what C holds where `accumulate` is not 0.
    Product {
        /// Address of A.
        a,
        /// Address of B.
        b,
        /// Address of C.
        c,
        /// Rows of C.
        m,
        /// Columns of C.
        n,
        /// Summed; with 0 the product is zero.
        k,
        /// Elements from one row of A to the next.
        a_row_stride,
        /// Elements from one column of A to the next.
        a_column_stride,
        /// Elements from one row of B to the next.
        b_row_stride,
        /// Elements from one column of B to the next.
        b_column_stride,
        /// Elements from one row of C to the next; its columns are adjacent.
        c_row_stride,
        /// 0 or 1.
        accumulate,
    }
}

impl Product {
    /// Orders products so that those with one result follow each other, each in the order given, and
    /// returns with them the first product of each such chain, and the end.
    pub fn chained(mut products: Vec<Product>) -> (Vec<Product>, Vec<i64>) {
        products.sort_by_key(|product| product.c);
        let first = |index: &usize| *index == 0 || products[index - 1].c != products[*index].c;
        let heads = (0..products.len()).filter(first).map(|index| index as i64);
        let chains = heads.chain([products.len() as i64]).collect();
        (products, chains)
    }
}

kernel! {
    /// All products of a list.
    Gemm {
        /// Table of [`Product`].
        products: In<i64>,
        /// From [`Product::chained`].
        chains: In<i64>,
        /// Chains.
        num_chains: i32,
    }
    for_grid {
        /// Largest m.
        rows: i64,
        /// Largest n.
        columns: i64,
    }
    |args| Geometry::tiles(args.rows, args.columns, i64::from(args.num_chains))
}
