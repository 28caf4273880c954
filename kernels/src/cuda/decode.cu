// K1 of Figure 21, fast decode: every token gathers its slots, times the score where `scores` is given (without:
// backward of encode), summed in fp32 in the order of choices. A token without slots gets zeros. One warp a token.
// `accumulate` adds to what the output holds.
REAL_KERNEL(decode)(const real* __restrict__ slots, const i64* __restrict__ places, const float* __restrict__ scores,
                    real* __restrict__ tokens, i64 num_tokens, int top_k, i64 model_dim, int accumulate) {
    for (i64 token = global_warp(); token < num_tokens; token += num_warps()) {
        real* to = tokens + token * model_dim;
        size_t addresses = address(to);
        for (int choice = 0; choice < top_k; choice++) {
            i64 place = places[token * top_k + choice];
            if (place >= 0) addresses |= address(slots + place);
        }
        for_each(model_dim, addresses, lane(), WARP, [&](i64 at, auto width) {
            Floats<width.n> sum;
#pragma unroll
            for (int i = 0; i < width.n; i++) sum.v[i] = 0.0f;
            if (accumulate) sum = load<width.n>(to + at);
            for (int choice = 0; choice < top_k; choice++) {
                i64 place = places[token * top_k + choice];
                if (place < 0) continue;
                float score = scores ? scores[token * top_k + choice] : 1.0f;
                auto v = load<width.n>(slots + place + at);
#pragma unroll
                for (int i = 0; i < width.n; i++) sum.v[i] += score * v.v[i];
            }
            store(to + at, sum);
        });
    }
}
