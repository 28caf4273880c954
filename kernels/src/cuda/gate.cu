// The gate, in fp32 whatever the layer's number type: softmax over experts and the choice of top-k, one warp a
// token.

namespace {

// Orders (value, expert) pairs by value, then by lower expert: a larger key is chosen earlier. Every float has its
// place, NaN of positive sign first, so k different experts are chosen whatever the input.
__device__ __forceinline__ unsigned long long choice_key(float value, int expert) {
    unsigned bits = __float_as_uint(value + 0.0f);  // -0 and 0 are equal
    bits = (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
    return ((unsigned long long)bits << 32) | (0xffffffffu - (unsigned)expert);
}

}  // namespace

// scores (T, E) = softmax(logits (T, E)) along E. In place is allowed.
PLAIN_KERNEL(gate_softmax)(const float* logits, float* scores, i64 num_tokens, int num_experts) {
    for (i64 token = global_warp(); token < num_tokens; token += num_warps()) {
        const float* row = logits + token * num_experts;
        float* out = scores + token * num_experts;
        float largest = __int_as_float(0xff800000);  // -infinity
        for (int e = lane(); e < num_experts; e += WARP) largest = fmaxf(largest, row[e]);
        largest = warp_max(largest);
        float sum = 0.0f;
        for (int e = lane(); e < num_experts; e += WARP) sum += expf(row[e] - largest);
        sum = warp_sum(sum);
        for (int e = lane(); e < num_experts; e += WARP) out[e] = expf(row[e] - largest) / sum;
    }
}

// The experts (T, k) of the k largest scores of every token, best first, ties to the lower expert.
PLAIN_KERNEL(gate_top_k)(const float* __restrict__ scores, int* __restrict__ experts, i64 num_tokens, int num_experts,
                         int top_k) {
    for (i64 token = global_warp(); token < num_tokens; token += num_warps()) {
        const float* row = scores + token * num_experts;
        unsigned long long last = ~0ull;
        for (int choice = 0; choice < top_k; choice++) {
            unsigned long long best = 0;
            for (int e = lane(); e < num_experts; e += WARP) {
                unsigned long long key = choice_key(row[e], e);
                if (key < last && key > best) best = key;
            }
#pragma unroll
            for (int distance = WARP / 2; distance > 0; distance /= 2) {
                unsigned long long other = __shfl_xor_sync(ALL_LANES, best, distance);
                if (other > best) best = other;
            }
            last = best;
            if (lane() == 0) experts[token * top_k + choice] = (int)(0xffffffffu - (unsigned)best);
        }
    }
}

// The scores (T, k) that expert outputs are weighted with: those of the chosen experts, divided by their sum where
// `normalize` is set. The choice may also have been forced from outside.
PLAIN_KERNEL(gate_chosen)(const float* __restrict__ scores, const int* __restrict__ experts, float* __restrict__ chosen,
                          i64 num_tokens, int num_experts, int top_k, int normalize) {
    for (i64 token = global_thread(); token < num_tokens; token += num_threads()) {
        const float* row = scores + token * num_experts;
        float sum = 0.0f;
        for (int i = 0; i < top_k; i++) sum += row[experts[token * top_k + i]];
        for (int i = 0; i < top_k; i++) {
            float score = row[experts[token * top_k + i]];
            chosen[token * top_k + i] = normalize ? score / sum : score;
        }
    }
}
