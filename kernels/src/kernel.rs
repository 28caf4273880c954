//! Which kernels there are, their text, and how it is compiled.

use std::path::{Path, PathBuf};

/// Number type of the tensors a kernel works on. Sums are fp32 whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Real {
    /// 4-byte floats.
    F32,
    /// 2-byte IEEE half.
    F16,
    /// 2-byte bfloat.
    Bf16,
}

impl Real {
    /// All number types.
    pub const ALL: [Real; 3] = [Real::F32, Real::F16, Real::Bf16];

    /// Bytes of an element.
    pub const fn bytes(self) -> u64 {
        match self {
            Real::F32 => 4,
            Real::F16 | Real::Bf16 => 2,
        }
    }

    /// What entry points of this type end in.
    pub const fn suffix(self) -> &'static str {
        match self {
            Real::F32 => "f32",
            Real::F16 => "f16",
            Real::Bf16 => "bf16",
        }
    }

    /// The compiler option that selects it.
    pub const fn define(self) -> &'static str {
        match self {
            Real::F32 => "-DMOE_DTYPE=0",
            Real::F16 => "-DMOE_DTYPE=1",
            Real::Bf16 => "-DMOE_DTYPE=2",
        }
    }
}

/// Options for NVRTC: for a compute capability such as `80`, with the headers of [`include_folder`], which fp16 and bf16 need.
///
/// Lambdas carry no `__device__` in the text, hence the default execution space; helpers of common.cuh
/// that a module does not use are no reason to warn.
pub fn nvrtc_options(arch: &str, real: Real, include: Option<&Path>) -> Vec<String> {
    let fixed = [
        "--std=c++17",
        "--device-as-default-execution-space",
        "--diag-suppress=177",
    ];
    let mut options: Vec<String> = fixed.map(String::from).to_vec();
    options.push(format!("--gpu-architecture=compute_{arch}"));
    options.push(real.define().to_string());
    options.extend(include.map(|folder| format!("--include-path={}", folder.display())));
    options
}

/// Where CUDA's headers are: as `CUDA_HOME` or `CUDA_PATH` say, or where the toolkit installs them.
pub fn include_folder() -> Option<PathBuf> {
    let named = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(std::env::var_os);
    let roots = named
        .map(PathBuf::from)
        .chain([PathBuf::from("/usr/local/cuda")]);
    roots
        .map(|root| root.join("include"))
        .find(|folder| folder.join("cuda_fp16.h").is_file())
}

macro_rules! modules {
    ($($(#[$doc:meta])* $module:ident = $file:literal, $plain:literal {
        $($(#[$kernel_doc:meta])* $kernel:ident = $entry:literal,)+
    })+) => {
        /// One `.cu` file, compiled for itself.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Module { $($(#[$doc])* $module,)+ }

        impl Module {
            /// All modules.
            pub const ALL: &'static [Module] = &[$(Module::$module,)+];

            /// Name of its file.
            pub const fn file(self) -> &'static str {
                match self { $(Module::$module => concat!($file, ".cu"),)+ }
            }

            /// Whether its kernels do not depend on the number type: then there is one instance, under fp32.
            pub const fn is_plain(self) -> bool {
                match self { $(Module::$module => $plain,)+ }
            }

            /// Its text: common.cuh, then the file, with `#line` so that errors name our files.
            pub const fn source(self) -> &'static str {
                match self { $(Module::$module => concat!(
                    "#line 1 \"common.cuh\"\n", include_str!("cuda/common.cuh"),
                    "#line 1 \"", $file, ".cu\"\n", include_str!(concat!("cuda/", $file, ".cu")),
                ),)+ }
            }

            /// Its kernels.
            pub const fn kernels(self) -> &'static [KernelId] {
                match self { $(Module::$module => &[$(KernelId::$kernel,)+],)+ }
            }

            /// The number types it is compiled for.
            pub const fn reals(self) -> &'static [Real] {
                if self.is_plain() { &[Real::F32] } else { &Real::ALL }
            }
        }

        /// An entry point, whatever its number type.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum KernelId { $($($(#[$kernel_doc])* $kernel,)+)+ }

        impl KernelId {
            /// All kernels.
            pub const ALL: &'static [KernelId] = &[$($(KernelId::$kernel,)+)+];

            /// The file it is in.
            pub const fn module(self) -> Module {
                match self { $($(KernelId::$kernel => Module::$module,)+)+ }
            }

            /// Name of the entry point for a number type.
            pub const fn entry(self, real: Real) -> &'static str {
                match self { $($(KernelId::$kernel => match (self.module().is_plain(), real) {
                    (true, _) => $entry,
                    (false, Real::F32) => concat!($entry, "_f32"),
                    (false, Real::F16) => concat!($entry, "_f16"),
                    (false, Real::Bf16) => concat!($entry, "_bf16"),
                },)+)+ }
            }
        }
    };
}

modules! {
    /// Softmax and top-k.
    Gate = "gate", true {
        /// Scores of all experts.
        GateSoftmax = "gate_softmax",
        /// The k best experts of a token.
        GateTopK = "gate_top_k",
        /// What their outputs are weighted with.
        GateChosen = "gate_chosen",
    }
    /// Backward of the gate.
    GateGradient = "gate_gradient", true {
        /// From chosen scores to logits.
        GateGradient = "gate_gradient",
    }
    /// Vectors of a cosine gate.
    Normalize = "normalize", true {
        /// To a given length.
        Normalize = "normalize",
        /// Its backward.
        NormalizeGradient = "normalize_gradient",
    }
    /// Slot locations by scan.
    Slots = "slots", true {
        /// Copies of each expert in each tile.
        SlotCount = "slot_count",
        /// Exclusive sums over tiles.
        SlotScan = "slot_scan",
        /// Locations of all copies.
        SlotAssign = "slot_assign",
        /// Places in the dispatch buffer.
        SlotPlaces = "slot_places",
    }
    /// K0.
    Encode = "encode", false {
        /// Tokens to slots.
        Encode = "encode",
    }
    /// K1.
    Decode = "decode", false {
        /// Slots to tokens.
        Decode = "decode",
    }
    /// K2.
    ScoreGradient = "score_gradient", false {
        /// Row-wise dot products.
        ScoreGradient = "score_gradient",
    }
    /// Tensors of the dense encode and decode.
    Dense = "dense", false {
        /// Combine weights, one tensor a choice.
        DenseChoices = "dense_choices",
        /// Their boolean.
        DenseBoolean = "dense_boolean",
        /// Dispatch mask.
        DenseMask = "dense_mask",
        /// Score gradients out of the weights' gradient.
        DenseScores = "dense_scores",
    }
    /// Bias of the expert FFN.
    Bias = "bias", false {
        /// Adds it.
        Bias = "bias",
    }
    /// Its backward.
    BiasGradient = "bias_gradient", false {
        /// Column sums of slices of rows.
        SliceSums = "slice_sums",
        /// Sums of an expert's slices.
        BiasGradient = "bias_gradient",
    }
    /// ReLU and GELU.
    Activation = "activation", false {
        /// Forward.
        Activation = "activation",
        /// Backward.
        ActivationGradient = "activation_gradient",
    }
    /// Stride copies, repetition, gathering, exchange.
    CopyRuns = "copy_runs", true {
        /// Copies runs of bytes.
        CopyRuns = "copy_runs",
    }
    /// Local sums and reduce-scatter.
    SumRuns = "sum_runs", false {
        /// Sums runs of elements.
        SumRuns = "sum_runs",
    }
    /// To and from the gate's fp32.
    Cast = "cast", false {
        /// To fp32.
        CastToFloat = "cast_to_float",
        /// From fp32.
        CastFromFloat = "cast_from_float",
    }
    /// Products where cuBLAS is absent.
    Gemm = "gemm", false {
        /// A list of products.
        Gemm = "gemm",
    }
}
