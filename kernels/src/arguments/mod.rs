//! Named, typed arguments of every kernel: one struct a kernel, so that callers cannot swap them.

mod copies;
mod expert;
mod gate;
mod tokens;

pub use copies::{CastFromFloat, CastToFloat, GatherRows, LocalSum, Repeat, StrideCopy};
pub use expert::{
    Activation, ActivationGradient, Bias, BiasGradient, GemmNn, GemmNt, GemmTn, Segments,
};
pub use gate::{
    GateGradient, GateSoftmax, GateTopK, SLOT_TILE, SlotAssign, SlotCount, SlotRows, SlotScan,
    slot_tiles,
};
pub use tokens::{Decode, DenseScoreGradient, DenseWeights, Encode, ScoreGradient};

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

/// Kinds of the parameters of every kernel, as [`crate::Parameter::KIND`]: what tests hold against the
/// compiled signatures.
pub fn signature(kernel: KernelId) -> String {
    use crate::Arguments as _;
    match kernel {
        KernelId::GateSoftmax => GateSoftmax::signature(),
        KernelId::GateTopK => GateTopK::signature(),
        KernelId::GateGradient => GateGradient::signature(),
        KernelId::SlotCount => SlotCount::signature(),
        KernelId::SlotScan => SlotScan::signature(),
        KernelId::SlotAssign => SlotAssign::signature(),
        KernelId::SlotRows => SlotRows::signature(),
        KernelId::Encode => Encode::signature(),
        KernelId::Decode => Decode::signature(),
        KernelId::ScoreGradient => ScoreGradient::signature(),
        KernelId::DenseWeights => DenseWeights::signature(),
        KernelId::DenseScoreGradient => DenseScoreGradient::signature(),
        KernelId::Bias => Bias::signature(),
        KernelId::BiasGradient => BiasGradient::signature(),
        KernelId::Activation => Activation::signature(),
        KernelId::ActivationGradient => ActivationGradient::signature(),
        KernelId::StrideCopy => StrideCopy::signature(),
        KernelId::Repeat => Repeat::signature(),
        KernelId::LocalSum => LocalSum::signature(),
        KernelId::GatherRows => GatherRows::signature(),
        KernelId::CastToFloat => CastToFloat::signature(),
        KernelId::CastFromFloat => CastFromFloat::signature(),
        KernelId::GemmNn => GemmNn::signature(),
        KernelId::GemmNt => GemmNt::signature(),
        KernelId::GemmTn => GemmTn::signature(),
    }
}
