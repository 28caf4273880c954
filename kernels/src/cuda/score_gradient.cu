// K2 of Figure 21: the gradient of a score is the dot product of the token's output gradient with the expert
// output it weighted; a dropped copy gets zero. fp32 sums, one warp a token copy.
REAL_KERNEL(score_gradient)(const real* __restrict__ output_gradient, const real* __restrict__ slots,
                            const i64* __restrict__ places, float* __restrict__ gradient, i64 num_tokens, int top_k,
                            i64 model_dim) {
    i64 copies = num_tokens * top_k;
    for (i64 copy = global_warp(); copy < copies; copy += num_warps()) {
        i64 place = places[copy];
        float sum = 0.0f;
        if (place >= 0) {
            const real* a = output_gradient + copy / top_k * model_dim;
            const real* b = slots + place;
            for_each(model_dim, address(a) | address(b), lane(), WARP, [&](i64 at, auto width) {
                auto x = load<width.n>(a + at);
                auto y = load<width.n>(b + at);
#pragma unroll
                for (int i = 0; i < width.n; i++) sum += x.v[i] * y.v[i];
            });
        }
        sum = warp_sum(sum);
        if (lane() == 0) gradient[copy] = sum;
    }
}
