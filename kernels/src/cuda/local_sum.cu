// Sums the `copies` partial outputs of every block (r > 1), in fp32 and in order: to[block] = sum_copy from[block][copy].
// With one block, `to` may be `from`. It also sums the pieces of a reduce-scatter. blockIdx.y is a block.
REAL_KERNEL(local_sum)(const real* from, real* to, i64 blocks, int copies, i64 elements) {
    for (i64 block = blockIdx.y; block < blocks; block += gridDim.y) {
        const real* parts = from + block * copies * elements;
        real* target = to + block * elements;
        // Every part is as aligned as the first only if the length keeps it so.
        size_t addresses = address(parts) | address(target) | (size_t)(elements * (i64)sizeof(real));
        for_each(elements, addresses, global_thread(), num_threads(), [&](i64 at, auto width) {
            auto sum = load<width.n>(parts + at);
            for (int copy = 1; copy < copies; copy++) {
                auto v = load<width.n>(parts + copy * elements + at);
#pragma unroll
                for (int i = 0; i < width.n; i++) sum.v[i] += v.v[i];
            }
            store(target + at, sum);
        });
    }
}
