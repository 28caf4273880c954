// Adds an expert's bias (channels) to all its rows, in place. Segment s belongs to expert s % experts; the biases lie
// `bias_stride` elements apart. One warp a row, blockIdx.y a segment.
REAL_KERNEL(bias)(real* values, const real* __restrict__ biases, const i64* __restrict__ starts, i64 rows_per_segment,
                  int segments, int experts, i64 channels, i64 bias_stride) {
    for (int segment = blockIdx.y; segment < segments; segment += gridDim.y) {
        Segment s = segment_at(starts, rows_per_segment, segment);
        const real* bias = biases + segment % experts * bias_stride;
        for (i64 r = global_warp(); r < s.rows; r += num_warps()) {
            real* row = values + (s.first + r) * channels;
            for_each(channels, address(row) | address(bias), lane(), WARP, [&](i64 at, auto width) {
                auto v = load<width.n>(row + at);
                auto b = load<width.n>(bias + at);
#pragma unroll
                for (int i = 0; i < width.n; i++) v.v[i] += b.v[i];
                store(row + at, v);
            });
        }
    }
}
