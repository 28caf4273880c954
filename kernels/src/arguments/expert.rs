//! The expert FFN over segments of rows.

use super::kernel;
use crate::{Geometry, In, Out, Real};

/// How rows belong to experts: segment s to expert s % experts. Padded buffers have equal segments (W
/// blocks an expert in the conventional layout, one in the flexible); dropless ones start where they start.
#[derive(Debug, Clone, Copy)]
pub struct Segments {
    /// (segments + 1) row numbers on the device; absent: all have `rows` rows.
    pub starts: Option<In<i64>>,
    /// Rows of a segment, or of the longest.
    pub rows: i64,
    /// How many.
    pub count: i32,
    /// Experts of the rank.
    pub experts: i32,
}

kernel! {
    /// values[row] += bias of the row's expert, in place.
    Bias {
        /// (rows, channels).
        values: Out<Real>,
        /// First expert's bias.
        biases: In<Real>,
        /// [`Segments::starts`].
        starts: Option<In<i64>>,
        /// [`Segments::rows`].
        rows_per_segment: i64,
        /// [`Segments::count`].
        segments: i32,
        /// [`Segments::experts`].
        experts: i32,
        /// Channels of a row.
        channels: i64,
        /// Elements from one expert's bias to the next.
        bias_stride: i64,
    }
    |args| Geometry::warp_each_in(args.rows_per_segment, i64::from(args.segments))
}

kernel! {
    /// Column sums of every expert's rows.
    BiasGradient {
        /// (rows, channels).
        values: In<Real>,
        /// First expert's gradient.
        gradients: Out<Real>,
        /// [`Segments::starts`].
        starts: Option<In<i64>>,
        /// [`Segments::rows`].
        rows_per_segment: i64,
        /// [`Segments::count`].
        segments: i32,
        /// [`Segments::experts`].
        experts: i32,
        /// Channels of a row.
        channels: i64,
        /// Elements from one expert's gradient to the next.
        gradient_stride: i64,
        /// Add to what the gradient holds.
        accumulate: bool,
    }
    |args| Geometry::columns(args.channels, i64::from(args.experts))
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

kernel! {
    /// gradient *= act'(saved): the output for ReLU, the input for GELU.
    ActivationGradient {
        /// (count).
        saved: In<Real>,
        /// (count).
        gradient: Out<Real>,
        /// Elements.
        count: i64,
        /// 0 ReLU, 1 GELU.
        kind: i32,
    }
    |args| Geometry::copies(args.count * 4, 1)
}

/// The two products of rows with an expert's matrix share their parameters.
macro_rules! row_product {
    ($(#[$doc:meta])* $name:ident) => {
        kernel! {
            $(#[$doc])*
            $name {
                /// (rows, k).
                a: In<Real>,
                /// First expert's matrix.
                b: In<Real>,
                /// (rows, n).
                c: Out<Real>,
                /// [`Segments::starts`].
                starts: Option<In<i64>>,
                /// [`Segments::rows`].
                rows_per_segment: i64,
                /// [`Segments::count`].
                segments: i32,
                /// [`Segments::experts`].
                experts: i32,
                /// Columns of the result.
                n: i64,
                /// Summed.
                k: i64,
                /// Elements from one expert's matrix to the next.
                matrix_stride: i64,
                /// Add to what `c` holds.
                accumulate: bool,
            }
            |args| Geometry::tiles(args.rows_per_segment, args.n, i64::from(args.segments))
        }
    };
}
row_product! {
    /// C (rows, n) = A (rows, k) B_e (k, n).
    GemmNn
}
row_product! {
    /// C (rows, n) = A (rows, k) B_e^T, B_e (n, k).
    GemmNt
}

kernel! {
    /// C_e (m, n) = sum over the segments of e of A^T B.
    GemmTn {
        /// (rows, m).
        a: In<Real>,
        /// (rows, n).
        b: In<Real>,
        /// First expert's result.
        c: Out<Real>,
        /// [`Segments::starts`].
        starts: Option<In<i64>>,
        /// [`Segments::rows`].
        rows_per_segment: i64,
        /// [`Segments::count`].
        segments: i32,
        /// [`Segments::experts`].
        experts: i32,
        /// Rows of the result.
        m: i64,
        /// Columns of the result.
        n: i64,
        /// Elements from one expert's result to the next.
        matrix_stride: i64,
        /// Add to what `c` holds.
        accumulate: bool,
    }
    |args| Geometry::tiles(args.m, args.n, i64::from(args.experts))
}
