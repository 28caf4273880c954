// Activation of the expert FFN and its backward, in place. `kind`: 0 ReLU, 1 GELU (exact, with the error function).

namespace {

constexpr float SQRT_HALF = 0.70710678118654752440f;
constexpr float INV_SQRT_2PI = 0.39894228040143267794f;

__device__ __forceinline__ float activate(float v, int kind) {
    return kind == 0 ? fmaxf(v, 0.0f) : 0.5f * v * (1.0f + erff(v * SQRT_HALF));
}

// The derivative, from what the forward pass saved: the output for ReLU, the input for GELU.
__device__ __forceinline__ float slope(float saved, int kind) {
    if (kind == 0) return saved > 0.0f ? 1.0f : 0.0f;
    return 0.5f * (1.0f + erff(saved * SQRT_HALF)) + saved * INV_SQRT_2PI * expf(-0.5f * saved * saved);
}

template <int N> struct Two {
    typename Raw<N>::type saved, gradient;
};

}  // namespace

REAL_KERNEL(activation)(real* values, i64 count, int kind) {
    for_each_in_place(
        count, address(values), global_thread(), num_threads(),
        [&](i64 at, auto width) { return load_raw<width.n>(values + at); },
        [&](i64 at, auto raw, auto width) {
            auto v = to_floats<width.n>(raw);
#pragma unroll
            for (int i = 0; i < width.n; i++) v.v[i] = activate(v.v[i], kind);
            store(values + at, v);
        });
}

// gradient *= slope(saved), where the saved values may lie in several buffers: runs (n, 3) are address of the saved
// values, offset in the gradient, elements. blockIdx.y is a run.
REAL_KERNEL(activation_gradient)(real* gradient, const i64* __restrict__ runs, int num_runs, int kind) {
    for (int run = blockIdx.y; run < num_runs; run += gridDim.y) {
        const real* saved = reinterpret_cast<const real*>(runs[3 * run]);
        real* target = gradient + runs[3 * run + 1];
        for_each_in_place(
            runs[3 * run + 2], address(saved) | address(target), global_thread(), num_threads(),
            [&](i64 at, auto width) {
                return Two<width.n>{load_raw<width.n>(saved + at), load_raw<width.n>(target + at)};
            },
            [&](i64 at, auto raw, auto width) {
                auto v = to_floats<width.n>(raw.saved);
                auto g = to_floats<width.n>(raw.gradient);
#pragma unroll
                for (int i = 0; i < width.n; i++) g.v[i] *= slope(v.v[i], kind);
                store(target + at, g);
            });
    }
}
