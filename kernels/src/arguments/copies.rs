//! Copies, sums of copies and casts.

use super::{kernel, table_row};
use crate::{Geometry, In, Out, Real};

table_row! {
    /// One copy of [`CopyRuns`].
    CopyRun {
        /// Address of the source.
        source,
        /// Byte offset in the target.
        at,
        /// Bytes.
        bytes,
    }
}

kernel! {
    /// target[at..] = source, for every run.
    CopyRuns {
        /// What offsets count from.
        target: Out<u8>,
        /// Table of [`CopyRun`].
        runs: In<i64>,
        /// Rows of it.
        num_runs: i32,
    }
    for_grid {
        /// Bytes of the longest run.
        longest: i64,
    }
    |args| Geometry::copies(args.longest, i64::from(args.num_runs))
}

table_row! {
    /// One sum of [`SumRuns`].
    SumRun {
        /// Element offset in the target.
        at,
        /// Elements.
        elements,
        /// First source in the list.
        first,
        /// Sources.
        sources,
    }
}

kernel! {
    /// target[at..] = sum of the sources in order, for every run.
    SumRuns {
        /// What offsets count from.
        target: Out<Real>,
        /// Table of [`SumRun`].
        runs: In<i64>,
        /// Addresses.
        sources: In<i64>,
        /// Rows of `runs`.
        num_runs: i32,
    }
    for_grid {
        /// Elements of the longest run.
        longest: i64,
    }
    |args| Geometry::copies(args.longest * 4, i64::from(args.num_runs))
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
    |args| Geometry::copies(args.count * 4, 1)
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
    |args| Geometry::copies(args.count * 4, 1)
}
