//! Names by which recorders call the same things.

/// The step, forward pass or batch.
pub(super) const STEP: &[&str] = &[
    "step",
    "iteration",
    "forward_pass_id",
    "forward_pass",
    "batch",
    "batch_id",
];

/// The MoE layer.
pub(super) const LAYER: &[&str] = &["layer", "layer_id", "layer_idx", "layer_index", "moe_layer"];

/// The GPU whose tokens are routed.
pub(super) const RANK: &[&str] = &["source_rank", "rank", "dp_rank", "ep_rank", "gpu"];

/// Experts that a token chose.
pub(super) const IDS: &[&str] = &[
    "topk_ids",
    "top_k_ids",
    "expert_ids",
    "experts",
    "topk_experts",
    "selected_experts",
    "routed_experts",
    "topk_ids_of_layer",
];

/// What the gate gave them.
pub(super) const SCORES: &[&str] = &[
    "topk_weights",
    "top_k_weights",
    "expert_weights",
    "routing_weights",
    "weights",
    "scores",
    "gate_scores",
    "topk_probs",
    "probs",
];

/// Counts per expert.
pub(super) const COUNTS: &[&str] = &[
    "logical_count",
    "global_physical_count",
    "expert_load_window",
    "global_expert_load",
    "expert_load",
    "expert_counts",
    "counts",
];

/// One expert, where counts are listed, and its count.
pub(super) const EXPERT: &[&str] = &["expert", "expert_id", "expert_idx"];
pub(super) const COUNT: &[&str] = &["count", "num_tokens", "tokens", "load"];

/// What is said where a file of counts does not tell `top_k`.
pub(super) const TOP_K_ASSUMED: &str =
    "top_k 1: the file does not say how many copies of a token are counted";

/// Prefixes of numbered columns, one a choice.
pub(super) const NUMBERED_IDS: &[&str] = &["expert", "expert_", "expert_id_", "topk_id_", "topk_"];
pub(super) const NUMBERED_SCORES: &[&str] =
    &["score", "score_", "weight", "weight_", "topk_weight_"];

/// Prefixes of numbered columns, one an expert.
pub(super) const NUMBERED_COUNTS: &[&str] = &["e", "e_", "expert", "expert_", "E"];

/// Prefixes of numbered columns, one a layer: the ids a token chose there, and their scores.
pub(super) const LAYER_IDS: &[&str] = &["L", "layer_"];
pub(super) const LAYER_SCORES: &[&str] = &["W", "weights_"];

/// Whether `name` is one of `names`.
pub(super) fn is(name: &str, names: &[&str]) -> bool {
    names.contains(&name)
}
