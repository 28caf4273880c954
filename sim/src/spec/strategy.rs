//! A strategy is data: which kernels, which All-to-All, which layout, how many chunks, which r.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Declares a field-less enum with its names on the command line, in TOML and in JSON.
macro_rules! named_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$doc])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// Every variant, in the order of the documentation.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The name used on the command line and in files.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.name()) }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|v| v.name() == text).ok_or_else(|| {
                    let names: Vec<_> = Self::ALL.iter().map(|v| v.name()).collect();
                    format!("expected {}, found `{text}`", names.join(", "))
                })
            }
        }
    };
}

named_enum! {
    /// How tokens are written to and read from the dispatch buffer (Section 4.1, Figure 21).
    Encode {
        /// GShard and Fairseq: einsums over a (T, E, C_g) tensor, O(T·E·C_g·D).
        Dense = "dense",
        /// Tutel's fast encode/decode: one row copy a token copy, O(T·k·D).
        Sparse = "sparse",
    }
}

named_enum! {
    /// The All-to-All algorithm (Section 4.2).
    AllToAll {
        /// Algorithm 1: one send and one receive a peer.
        Linear = "linear",
        /// Algorithm 2: two-dimensional hierarchical, four phases.
        TwoDh = "2dh",
        /// 2DH of MSCCL: phases fused into one kernel, default (Simple) protocol.
        TwoDhFused = "2dh-fused",
        /// 2DH of MSCCL: phases fused, LL128 protocol.
        TwoDhLl128 = "2dh-ll128",
        /// Three-dimensional: 2DH whose inter-node phase is again hierarchical, over groups of nodes.
        ThreeDh = "3dh",
    }
}

named_enum! {
    /// Output layout of the dispatch All-to-All (Section 4.2, Figure 11).
    Layout {
        /// (W, E_g, C_g, D): W small GEMMs per expert.
        Conventional = "conventional",
        /// Flexible All-to-All, (E_g, C, D): one GEMM per expert.
        Flexible = "flexible",
    }
}

named_enum! {
    /// What the All-to-All carries.
    Padding {
        /// Every expert buffer is padded to the capacity: all messages are equal.
        Capacity = "capacity",
        /// Dropless: only routed tokens travel and multiply (All-to-All-v, grouped GEMM).
        Dropless = "dropless",
    }
}

named_enum! {
    /// How `auto` settings are decided from step to step.
    Policy {
        /// Decided once, on the first step, and kept.
        Static = "static",
        /// The dictionary of Section 3.3, keyed by capacity; trials are charged while it learns.
        Dictionary = "dictionary",
        /// The best of all choices at every step, for free: the bound the others are held against.
        Oracle = "oracle",
    }
}

named_enum! {
    /// How much of a training step is simulated.
    Phase {
        /// Gate to decode.
        Forward = "forward",
        /// Forward and backward.
        Training = "training",
    }
}

/// A setting that is fixed, or left to the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice<T> {
    /// Always this.
    Fixed(T),
    /// Whatever the policy finds best.
    Auto,
}

impl<T: Copy> Choice<T> {
    /// The values to try: the fixed one, or all of `candidates`.
    pub fn among(self, candidates: &[T]) -> Vec<T> {
        match self {
            Choice::Fixed(value) => vec![value],
            Choice::Auto => candidates.to_vec(),
        }
    }
}

impl<T: fmt::Display> fmt::Display for Choice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Fixed(value) => write!(f, "{value}"),
            Choice::Auto => f.write_str("auto"),
        }
    }
}

impl<T: FromStr<Err: fmt::Display>> FromStr for Choice<T> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Choice::Auto),
            _ => text
                .parse()
                .map(Choice::Fixed)
                .map_err(|e| format!("{e} (or `auto`)")),
        }
    }
}

impl<T: Serialize> Serialize for Choice<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Choice::Fixed(value) => value.serialize(serializer),
            Choice::Auto => serializer.serialize_str("auto"),
        }
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Choice<T> {
    /// Accepts a number or a string, so that TOML may say `pipeline-degree = 4` or `"auto"`.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        let text = match Raw::deserialize(deserializer) {
            Ok(Raw::Number(number)) => number.to_string(),
            Ok(Raw::Text(text)) => text,
            Err(_) => {
                return Err(serde::de::Error::custom(
                    "expected a whole number, a name or `auto`",
                ));
            }
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Pipelining degrees the paper tries (Section 3.2).
pub const PIPELINE_DEGREES: [u64; 4] = [1, 2, 4, 8];

/// One way to run the layer. Every field is data; no strategy has a code path of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Strategy {
    /// Shown in tables.
    pub name: String,
    /// Encode and decode kernels.
    pub encode: Encode,
    /// All-to-All algorithm a.
    pub all_to_all: Choice<AllToAll>,
    /// Output layout of the dispatch All-to-All.
    pub layout: Layout,
    /// Pipelining degree d of the forward pass.
    pub pipeline_degree: Choice<u64>,
    /// Pipelining degree of the backward pass; `None` follows the forward pass.
    pub backward_degree: Option<Choice<u64>>,
    /// Adaptive parallelism parameter r.
    pub adaptive_r: Choice<u64>,
    /// Padded to capacity, or dropless.
    pub padding: Padding,
    /// Decides what is `auto`.
    pub policy: Policy,
    /// Overrides the layer's capacity setting x; `None` follows the layer.
    pub capacity_factor: Option<f64>,
}

impl Default for Strategy {
    fn default() -> Self {
        Strategy::fairseq()
    }
}

impl Strategy {
    /// The static baseline of the paper: Fairseq, the same as DeepSpeed MoE (Section 5.2).
    pub fn fairseq() -> Strategy {
        Strategy {
            name: "fairseq".into(),
            encode: Encode::Dense,
            all_to_all: Choice::Fixed(AllToAll::Linear),
            layout: Layout::Conventional,
            pipeline_degree: Choice::Fixed(1),
            backward_degree: None,
            adaptive_r: Choice::Fixed(1),
            padding: Padding::Capacity,
            policy: Policy::Static,
            capacity_factor: None,
        }
    }

    /// Everything the paper adds, all choices adaptive.
    pub fn tutel() -> Strategy {
        Strategy {
            name: "tutel".into(),
            encode: Encode::Sparse,
            all_to_all: Choice::Auto,
            layout: Layout::Flexible,
            pipeline_degree: Choice::Auto,
            adaptive_r: Choice::Auto,
            policy: Policy::Oracle,
            ..Strategy::fairseq()
        }
    }

    /// A built-in strategy by name: `fairseq` or `tutel`.
    pub fn named(name: &str) -> Option<Strategy> {
        match name {
            "fairseq" => Some(Strategy::fairseq()),
            "tutel" => Some(Strategy::tutel()),
            _ => None,
        }
    }

    /// The feature ladder of Figure 14: each step keeps the one before and adds one feature.
    pub fn ladder() -> Vec<Strategy> {
        let baseline = Strategy::fairseq();
        let fast = Strategy {
            name: "+ fast encode/decode".into(),
            encode: Encode::Sparse,
            ..baseline.clone()
        };
        let two_dh = Strategy {
            name: "+ 2DH".into(),
            all_to_all: Choice::Fixed(AllToAll::TwoDh),
            ..fast.clone()
        };
        let flexible = Strategy {
            name: "+ Flexible All-to-All".into(),
            layout: Layout::Flexible,
            ..two_dh.clone()
        };
        let pipelining = Strategy {
            name: "+ adaptive pipelining".into(),
            all_to_all: Choice::Auto,
            pipeline_degree: Choice::Auto,
            policy: Policy::Oracle,
            ..flexible.clone()
        };
        let parallelism = Strategy {
            name: "+ adaptive parallelism".into(),
            ..Strategy::tutel()
        };
        vec![baseline, fast, two_dh, flexible, pipelining, parallelism]
    }

    /// Whether any setting is left to the policy.
    pub fn has_auto(&self) -> bool {
        self.all_to_all == Choice::Auto
            || self.pipeline_degree == Choice::Auto
            || self.backward_degree == Some(Choice::Auto)
            || self.adaptive_r == Choice::Auto
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_read_numbers_names_and_auto() {
        let read = |text: &str| toml::from_str::<Strategy>(text);
        assert_eq!(
            read("pipeline-degree = 4").unwrap().pipeline_degree,
            Choice::Fixed(4)
        );
        assert_eq!(
            read("pipeline-degree = 'auto'").unwrap().pipeline_degree,
            Choice::Auto
        );
        assert_eq!(
            read("all-to-all = '2dh'").unwrap().all_to_all,
            Choice::Fixed(AllToAll::TwoDh)
        );
        assert!(
            read("all-to-all = '4dh'")
                .unwrap_err()
                .to_string()
                .contains("2dh-ll128")
        );
        assert!(
            read("pipline-degree = 4")
                .unwrap_err()
                .to_string()
                .contains("unknown field")
        );
    }

    #[test]
    fn strategies_survive_a_round_trip() {
        for strategy in Strategy::ladder() {
            let text = toml::to_string(&strategy).unwrap();
            assert_eq!(toml::from_str::<Strategy>(&text).unwrap(), strategy);
        }
    }
}
