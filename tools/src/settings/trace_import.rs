//! Settings of `trace import`.

use clap::Args;
use moeplan_traces::{Assign, Axis, ImportOptions};
use serde::{Deserialize, Serialize};

/// `[trace-import]`: what a file leaves open, and what is to be said of it.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ImportSettings {
    /// Files of token ids that do not tell ranks: ranks the tokens are spread over [default: 8]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_ranks: Option<usize>,
    /// Files of token ids that do not tell steps: tokens of a rank in one step [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_tokens: Option<u32>,
    /// Number of experts [default: the columns of counts; of tokens the largest id plus one, rounded up to a power of two]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_experts: Option<usize>,
    /// Experts per token [default: all choices of tokens; 1 for counts, which do not tell]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_top_k: Option<u32>,
    /// How tokens are dealt to ranks: slices (each its own part of the file) or blocks (as they come; holds one step at a time) [default: slices]
    #[arg(long, value_name = "HOW")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assign: Option<String>,
    /// Axes of an array, outermost first: step, layer, rank, token, choice, expert, separated by commas [default: by name and depth]
    #[arg(long, value_name = "AXES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub axes: Option<String>,
    /// Array of an archive to read [default: logical_count or another known name, or the only one]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Divide counts by it: vLLM counts every token once for every data-parallel rank
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dp_size: Option<u32>,
    /// Keep runs of identical steps and tokens (warm-up, profiling, CUDA-graph capture)
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep_repeats: bool,
    /// The model that routed the tokens
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Where the tokens come from [default: the name of the file]
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Licence of the data
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
}

impl ImportSettings {
    /// These settings where they are set, those of `file` elsewhere.
    #[must_use]
    pub fn over(&self, file: &ImportSettings) -> ImportSettings {
        let text = |flag: &Option<String>, file: &Option<String>| flag.clone().or(file.clone());
        ImportSettings {
            trace_ranks: self.trace_ranks.or(file.trace_ranks),
            trace_tokens: self.trace_tokens.or(file.trace_tokens),
            trace_experts: self.trace_experts.or(file.trace_experts),
            trace_top_k: self.trace_top_k.or(file.trace_top_k),
            assign: text(&self.assign, &file.assign),
            axes: text(&self.axes, &file.axes),
            member: text(&self.member, &file.member),
            dp_size: self.dp_size.or(file.dp_size),
            keep_repeats: self.keep_repeats || file.keep_repeats,
            model: text(&self.model, &file.model),
            origin: text(&self.origin, &file.origin),
            licence: text(&self.licence, &file.licence),
        }
    }

    /// What the importers take, or the field that is wrong and why.
    ///
    /// # Errors
    /// A text that is none of those known.
    pub fn options(&self) -> Result<ImportOptions, (&'static str, String)> {
        let defaults = ImportOptions::default();
        let assign = self.assign.as_deref().map(str::parse::<Assign>).transpose();
        let axes = self.axes.as_deref().map(|axes| {
            let names = axes.split(',').map(str::trim);
            names.map(str::parse::<Axis>).collect::<Result<Vec<_>, _>>()
        });
        Ok(ImportOptions {
            source_ranks: self.trace_ranks.unwrap_or(defaults.source_ranks),
            tokens_per_rank: self.trace_tokens.unwrap_or(defaults.tokens_per_rank),
            assign: assign
                .map_err(|error| ("assign", error))?
                .unwrap_or_default(),
            experts: self.trace_experts,
            top_k: self.trace_top_k,
            axes: axes.transpose().map_err(|error| ("axes", error))?,
            member: self.member.clone(),
            dp_size: self.dp_size,
            keep_repeats: self.keep_repeats,
        })
    }
}
