// Between the layer's number type and the gate's fp32.

namespace {

// As many floats as `load` and `store` take elements, four at an access where there are several.
template <int N> __device__ __forceinline__ Floats<N> load_floats(const float* p) {
    Floats<N> r;
    if constexpr (N < 4) {
#pragma unroll
        for (int i = 0; i < N; i++) r.v[i] = p[i];
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            float4 four = *reinterpret_cast<const float4*>(p + i);
            r.v[i] = four.x, r.v[i + 1] = four.y, r.v[i + 2] = four.z, r.v[i + 3] = four.w;
        }
    }
    return r;
}
template <int N> __device__ __forceinline__ void store_floats(float* p, const Floats<N>& r) {
    if constexpr (N < 4) {
#pragma unroll
        for (int i = 0; i < N; i++) p[i] = r.v[i];
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4)
            *reinterpret_cast<float4*>(p + i) = make_float4(r.v[i], r.v[i + 1], r.v[i + 2], r.v[i + 3]);
    }
}

}  // namespace

REAL_KERNEL(cast_to_float)(const real* __restrict__ from, float* __restrict__ to, i64 count) {
    for_each(count, address(from) | address(to), global_thread(), num_threads(),
             [&](i64 at, auto width) { store_floats(to + at, load<width.n>(from + at)); });
}

// to = from, or to += from where `accumulate` is set.
REAL_KERNEL(cast_from_float)(const float* __restrict__ from, real* __restrict__ to, i64 count, int accumulate) {
    for_each(count, address(from) | address(to), global_thread(), num_threads(), [&](i64 at, auto width) {
        auto v = load_floats<width.n>(from + at);
        if (accumulate) {
            auto before = load<width.n>(to + at);
#pragma unroll
            for (int i = 0; i < width.n; i++) v.v[i] += before.v[i];
        }
        store(to + at, v);
    });
}
