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

// The k largest scores of every token, best first, ties to the lower expert: experts (T, k), and the scores their
// outputs are weighted with (T, k), divided by their sum where `normalize` is set.
PLAIN_KERNEL(gate_top_k)(const float* __restrict__ scores, int* __restrict__ experts, float* __restrict__ chosen,
                         i64 num_tokens, int num_experts, int top_k, int normalize) {
    for (i64 token = global_warp(); token < num_tokens; token += num_warps()) {
        const float* row = scores + token * num_experts;
        unsigned long long last = ~0ull;
        float sum = 0.0f;
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
            int expert = (int)(0xffffffffu - (unsigned)best);
            float score = row[expert];
            sum += score;
            if (lane() == 0) {
                experts[token * top_k + choice] = expert;
                chosen[token * top_k + choice] = score;
            }
        }
        if (normalize) {
            __syncwarp();
            for (int choice = lane(); choice < top_k; choice += WARP) chosen[token * top_k + choice] /= sum;
        }
    }
}
