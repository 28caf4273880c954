//! Named, typed arguments of every kernel: one struct a kernel, so that callers cannot swap them.

mod copies;
mod expert;
mod gate;
mod tokens;

pub use copies::{CastFromFloat, CastToFloat, CopyRun, CopyRuns, SumRun, SumRuns};
pub use expert::{
    Activation, ActivationGradient, Bias, BiasGradient, BiasRun, ExpertSlices, Gemm, Product,
    SLICE_ROWS, SavedRun, Slice, SliceSums,
};
pub use gate::{
    GateChosen, GateGradient, GateSoftmax, GateTopK, Normalize, NormalizeGradient, SLOT_TILE,
    SlotAssign, SlotCount, SlotPlaces, SlotScan, slot_tiles,
};
pub use tokens::{
    Decode, DenseBoolean, DenseChoices, DenseMask, DenseScores, Encode, ScoreGradient,
};

use crate::KernelId;

/// Declares the arguments of a kernel. Fields are its parameters in order; `for_grid` ones are not passed
/// and only size the grid.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident {
        $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
    } $(for_grid { $($(#[$hint_doc:meta])* $hint:ident: $hint_type:ty,)* })?
    |$args:ident| $geometry:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
            $($($(#[$hint_doc])* pub $hint: $hint_type,)*)?
        }

        impl $crate::Arguments for $name {
            const KERNEL: $crate::KernelId = $crate::KernelId::$name;

            fn signature() -> String {
                [$(<$type as $crate::Parameter>::KIND,)*].iter().collect()
            }

            fn launch(&self, real: $crate::Real) -> $crate::Launch {
                let $args = self;
                $crate::Launch {
                    kernel: Self::KERNEL,
                    real,
                    geometry: $geometry,
                    args: vec![$($crate::Parameter::arg(self.$field),)*],
                }
            }
        }
    };
}
pub(crate) use kernel;

/// Declares a row of a table that a kernel reads: `i64` fields, in the order the kernel's text states.
macro_rules! table_row {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: i64,)*
        }

        impl $name {
            /// The table of `rows` as the kernel reads it.
            pub fn table(rows: &[$name]) -> Vec<i64> {
                rows.iter().flat_map(|row| [$(row.$field,)*]).collect()
            }
        }
    };
}
pub(crate) use table_row;

/// Kinds of the parameters of every kernel, as [`crate::Parameter::KIND`]: what tests hold against the
/// compiled signatures.
pub fn signature(kernel: KernelId) -> String {
    use crate::Arguments as _;
    match kernel {
        KernelId::GateSoftmax => GateSoftmax::signature(),
        KernelId::GateTopK => GateTopK::signature(),
        KernelId::GateChosen => GateChosen::signature(),
        KernelId::GateGradient => GateGradient::signature(),
        KernelId::Normalize => Normalize::signature(),
        KernelId::NormalizeGradient => NormalizeGradient::signature(),
        KernelId::SlotCount => SlotCount::signature(),
        KernelId::SlotScan => SlotScan::signature(),
        KernelId::SlotAssign => SlotAssign::signature(),
        KernelId::SlotPlaces => SlotPlaces::signature(),
        KernelId::Encode => Encode::signature(),
        KernelId::Decode => Decode::signature(),
        KernelId::ScoreGradient => ScoreGradient::signature(),
        KernelId::DenseChoices => DenseChoices::signature(),
        KernelId::DenseBoolean => DenseBoolean::signature(),
        KernelId::DenseMask => DenseMask::signature(),
        KernelId::DenseScores => DenseScores::signature(),
        KernelId::Bias => Bias::signature(),
        KernelId::SliceSums => SliceSums::signature(),
        KernelId::BiasGradient => BiasGradient::signature(),
        KernelId::Activation => Activation::signature(),
        KernelId::ActivationGradient => ActivationGradient::signature(),
        KernelId::CopyRuns => CopyRuns::signature(),
        KernelId::SumRuns => SumRuns::signature(),
        KernelId::CastToFloat => CastToFloat::signature(),
        KernelId::CastFromFloat => CastFromFloat::signature(),
        KernelId::Gemm => Gemm::signature(),
    }
}
