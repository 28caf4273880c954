//! What an import took for granted, dropped and changed.

use serde::Serialize;

/// What an import took for granted, dropped and changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// What the file was recognised as.
    pub layout: String,
    /// What the file does not say and was taken for granted, a sentence each.
    pub assumed: Vec<String>,
    /// Steps dropped because they stood in a run of identical ones.
    pub dropped_identical_steps: u64,
    /// Steps dropped because all their tokens chose the same experts.
    pub dropped_uniform_steps: u64,
    /// Steps dropped because they have no tokens.
    pub dropped_empty_steps: u64,
    /// Layers without tokens dropped from steps that have some: dense layers, mostly.
    pub dropped_empty_layers: u64,
    /// Layers of steps left out because not all files of the run have them.
    pub lacking_steps: u64,
    /// Tokens dropped because they stood in a run of identical ones.
    pub dropped_identical_tokens: u64,
    /// Tokens left out because they do not fill a step.
    pub left_out_tokens: u64,
    /// Choices left out because fewer were asked for.
    pub left_out_choices: u64,
    /// Lines of the file that hold no choices and were skipped.
    pub skipped_lines: u64,
    /// What counts were divided by.
    pub divided_by: Option<u32>,
    /// Counts that did not divide evenly and were rounded.
    pub rounded_counts: u64,
}

impl ImportReport {
    /// What was left out and changed, a sentence each: the `reduced` lines of a trace.
    pub fn reduced(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut say = |count: u64, what: &str| {
            if count > 0 {
                lines.push(format!("{count} {what}"));
            }
        };
        say(
            self.dropped_identical_steps,
            "steps in runs of identical ones dropped (warm-up, profiling, CUDA-graph capture)",
        );
        say(
            self.dropped_uniform_steps,
            "steps dropped whose tokens all chose the same experts (warm-up, profiling)",
        );
        say(self.dropped_empty_steps, "steps without tokens dropped");
        say(
            self.dropped_empty_layers,
            "layers without tokens dropped from steps (dense layers)",
        );
        say(
            self.lacking_steps,
            "layers of steps left out that not all files have",
        );
        say(
            self.dropped_identical_tokens,
            "tokens in runs of identical ones dropped (warm-up, profiling, padding)",
        );
        say(
            self.left_out_tokens,
            "tokens left out that do not fill a step",
        );
        say(self.left_out_choices, "choices beyond top_k left out");
        say(self.skipped_lines, "lines without choices skipped");
        if let Some(dp_size) = self.divided_by {
            lines.push(format!(
                "counts divided by {dp_size}, as vLLM counts every token once for every data-parallel rank"
            ));
        }
        let mut say = |count: u64, what: &str| {
            if count > 0 {
                lines.push(format!("{count} {what}"));
            }
        };
        say(
            self.rounded_counts,
            "counts did not divide evenly and were rounded",
        );
        lines
    }

    /// What a user should look at before trusting the result.
    pub fn warnings(&self) -> Vec<String> {
        self.reduced()
    }
}
