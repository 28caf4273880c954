//! What files leave open.

use std::str::FromStr;

use serde::Serialize;

use crate::error::{Place, TraceError};

/// What the public layouts leave open; moeplan's own format needs none of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportOptions {
    /// Source ranks over which tokens are spread where the file does not say on which they were.
    /// 8 if not said otherwise.
    pub source_ranks: usize,
    /// Tokens of every source rank in one step, where the file does not say which step a token
    /// was in. 64 if not said otherwise, so 512 tokens a step.
    pub tokens_per_rank: u32,
    /// How tokens are dealt to source ranks where the file does not say it.
    pub assign: Assign,
    /// Number of experts. If not given, the columns of counts; of tokens the largest id plus one,
    /// rounded up to a power of two.
    pub experts: Option<usize>,
    /// Per-token files: keep only that many choices of every token, best first (if not given, all
    /// of them). Count files: how many copies of a token are counted (if not given, 1; the OLMoE
    /// files need 8, those of Mixtral 2, and those with `top1` in their name 1).
    pub top_k: Option<u32>,
    /// What the axes of an array are, outermost first. If not given, told by their number and the
    /// array's name.
    pub axes: Option<Vec<Axis>>,
    /// Which array of an archive is read. If not given, the one with a known name, or the only
    /// one.
    pub member: Option<String>,
    /// Counts are divided by it: vLLM's load windows count every token that many times.
    pub dp_size: Option<u32>,
    /// Keep runs of identical steps and tokens, as warm-up, profiling and CUDA-graph batches
    /// leave behind.
    pub keep_repeats: bool,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            source_ranks: 8,
            tokens_per_rank: 64,
            assign: Assign::Slices,
            experts: None,
            top_k: None,
            axes: None,
            member: None,
            dp_size: None,
            keep_repeats: false,
        }
    }
}

impl ImportOptions {
    /// Fails where a number is zero.
    pub(crate) fn check(&self, file: Place) -> Result<(), TraceError> {
        let one = |value: Option<u64>| value.unwrap_or(1);
        for (field, value) in [
            ("source_ranks", self.source_ranks as u64),
            ("tokens_per_rank", self.tokens_per_rank.into()),
            ("experts", one(self.experts.map(|experts| experts as u64))),
            ("top_k", one(self.top_k.map(u64::from))),
            ("dp_size", one(self.dp_size.map(u64::from))),
        ] {
            if value == 0 {
                return Err(TraceError::invalid(file.field(field), "at least 1", "0"));
            }
        }
        Ok(())
    }
}

/// How a stream of tokens is dealt to source ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Assign {
    /// Every rank works through a contiguous slice of the file of its own, as in data parallelism
    /// over documents. Needs all tokens in memory.
    #[default]
    Slices,
    /// Every step takes the next tokens of the file, rank 0 the first of them. Holds one step at a
    /// time.
    Blocks,
}

impl FromStr for Assign {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "slices" => Ok(Self::Slices),
            "blocks" => Ok(Self::Blocks),
            _ => Err(format!("expected slices or blocks, found `{text}`")),
        }
    }
}

/// What one axis of an array counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Steps; outermost if there is one.
    Step,
    /// MoE layers.
    Layer,
    /// Source ranks.
    Rank,
    /// Tokens, of arrays of expert ids.
    Token,
    /// Choices of a token, best first; innermost.
    Choice,
    /// Experts, of arrays of counts.
    Expert,
}

impl Axis {
    /// All axes by name.
    pub const NAMES: [(&'static str, Axis); 6] = [
        ("step", Axis::Step),
        ("layer", Axis::Layer),
        ("rank", Axis::Rank),
        ("token", Axis::Token),
        ("choice", Axis::Choice),
        ("expert", Axis::Expert),
    ];
}

impl FromStr for Axis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.into_iter().find(|&(name, _)| name == text);
        found.map(|(_, axis)| axis).ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name).join(", ");
            format!("expected {names}, found `{text}`")
        })
    }
}
