//! Copies, sums of copies and casts.

use super::kernel;
use crate::{Geometry, In, Out, Real};

kernel! {
    /// to[o][column][row] = from[o][row][column], blocks of bytes.
    StrideCopy {
        /// (outer, rows, columns, block).
        from: In<u8>,
        /// (outer, columns, rows, block).
        to: Out<u8>,
        /// Outer size.
        outer: i64,
        /// Rows of the source.
        rows: i64,
        /// Columns of the source.
        columns: i64,
        /// Bytes of a block.
        block_bytes: i64,
    }
    |args| Geometry::copies(args.block_bytes, args.outer * args.rows * args.columns)
}

kernel! {
    /// to[block][copy] = from[block]; with one block, `to` may be `from`.
    Repeat {
        /// (blocks, block).
        from: In<u8>,
        /// (blocks, copies, block).
        to: Out<u8>,
        /// Blocks.
        blocks: i64,
        /// r.
        copies: i32,
        /// Bytes of a block.
        block_bytes: i64,
    }
    |args| Geometry::copies(args.block_bytes, args.blocks)
}

kernel! {
    /// to[block] = sum over copies of from[block][copy], in order; with one block, `to` may be `from`.
    LocalSum {
        /// (blocks, copies, elements).
        from: In<Real>,
        /// (blocks, elements).
        to: Out<Real>,
        /// Blocks.
        blocks: i64,
        /// r.
        copies: i32,
        /// Elements of a block.
        elements: i64,
    }
    |args| Geometry::copies(args.elements * 4, args.blocks)
}

kernel! {
    /// to[i] = from[index[i]], zero where the index is -1.
    GatherRows {
        /// Rows of `row_bytes`.
        from: In<u8>,
        /// (rows, row_bytes).
        to: Out<u8>,
        /// (rows).
        index: In<i32>,
        /// Rows written.
        rows: i64,
        /// Bytes of a row.
        row_bytes: i64,
    }
    |args| Geometry::warp_each(args.rows)
}

kernel! {
    /// To fp32.
    CastToFloat {
        /// (count).
        from: In<Real>,
        /// (count).
        to: Out<f32>,
        /// Elements.
        count: i64,
    }
    |args| Geometry::thread_each(args.count)
}

kernel! {
    /// From fp32.
    CastFromFloat {
        /// (count).
        from: In<f32>,
        /// (count).
        to: Out<Real>,
        /// Elements.
        count: i64,
        /// Add to what `to` holds.
        accumulate: bool,
    }
    |args| Geometry::thread_each(args.count)
}
