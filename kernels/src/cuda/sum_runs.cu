// Sums runs of elements, in fp32 and in order: the local sum of r partial outputs, and the sum of a reduce-scatter.
// runs (n, 4): offset in the target, elements, first source, sources; sources: addresses. blockIdx.y is a run.
REAL_KERNEL(sum_runs)(real* target, const i64* __restrict__ runs, const i64* __restrict__ sources, int num_runs) {
    for (int run = blockIdx.y; run < num_runs; run += gridDim.y) {
        real* to = target + runs[4 * run];
        i64 first = runs[4 * run + 2], count = runs[4 * run + 3];
        size_t addresses = address(to);
        for (i64 s = first; s < first + count; s++) addresses |= (size_t)sources[s];
        for_each(runs[4 * run + 1], addresses, global_thread(), num_threads(), [&](i64 at, auto width) {
            Floats<width.n> sum;
#pragma unroll
            for (int i = 0; i < width.n; i++) sum.v[i] = 0.0f;
#pragma unroll 2
            for (i64 s = first; s < first + count; s++) {
                auto v = load<width.n>(reinterpret_cast<const real*>(sources[s]) + at);
#pragma unroll
                for (int i = 0; i < width.n; i++) sum.v[i] += v.v[i];
            }
            store(to + at, sum);
        });
    }
}
