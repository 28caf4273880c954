// Backward of the choice, the normalisation and the softmax: from the gradient of the chosen scores (T, k) to that of
// the logits (T, E). One warp a token. Indices get no gradient. `balance` (E), if given, is added to the gradient of
// every token's scores: that of the load-balancing loss, which is the same for all tokens.
//
// Normalised g_i = s_i / S: ds_i = (dg_i - sum_j dg_j g_j) / S. Softmax: dl_e = s_e (ds_e - sum_j ds_j s_j).
PLAIN_KERNEL(gate_gradient)(const float* __restrict__ scores, const int* __restrict__ experts,
                            const float* __restrict__ chosen_gradient, const float* __restrict__ balance,
                            float* __restrict__ logits_gradient, i64 num_tokens, int num_experts, int top_k,
                            int normalize) {
    for (i64 token = global_warp(); token < num_tokens; token += num_warps()) {
        const float* score = scores + token * num_experts;
        const int* expert = experts + token * top_k;
        const float* gradient = chosen_gradient + token * top_k;
        float* out = logits_gradient + token * num_experts;

        float inverse = 1.0f, mean = 0.0f;
        if (normalize) {
            float sum = 0.0f;
            for (int i = 0; i < top_k; i++) sum += score[expert[i]];
            inverse = 1.0f / sum;
            for (int i = 0; i < top_k; i++) mean += gradient[i] * (score[expert[i]] * inverse);
        }
        float inner = 0.0f;
        for (int i = 0; i < top_k; i++) inner += (gradient[i] - mean) * inverse * score[expert[i]];
        if (balance) {
            float common = 0.0f;
            for (int e = lane(); e < num_experts; e += WARP) common += balance[e] * score[e];
            inner += warp_sum(common);
        }
        for (int e = lane(); e < num_experts; e += WARP) {
            float of_score = balance ? balance[e] : 0.0f;
            for (int i = 0; i < top_k; i++)
                if (expert[i] == e) of_score += (gradient[i] - mean) * inverse;
            out[e] = score[e] * (of_score - inner);
        }
    }
}
