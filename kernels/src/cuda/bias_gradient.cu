// Sums the rows of every expert, over all its segments (s % experts), into its bias gradient (channels); the gradients
// lie `gradient_stride` elements apart. fp32 sums in a fixed order. A block is 32 channels by 8 lanes of rows, blockIdx.y an
// expert. `accumulate` adds to what the gradient holds.
REAL_KERNEL(bias_gradient)(const real* __restrict__ values, real* __restrict__ gradients,
                           const i64* __restrict__ starts, i64 rows_per_segment, int segments, int experts,
                           i64 channels, i64 gradient_stride, int accumulate) {
    float* partial = reinterpret_cast<float*>(dyn_smem);  // [row lanes][32]
    int row_lanes = blockDim.x / WARP, row_lane = threadIdx.x / WARP;
    i64 tiles = (channels + WARP - 1) / WARP;
    for (int expert = blockIdx.y; expert < experts; expert += gridDim.y) {
        for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            i64 channel = tile * WARP + lane();
            float sum = 0.0f;
            if (channel < channels) {
                for (int segment = expert; segment < segments; segment += experts) {
                    Segment s = segment_at(starts, rows_per_segment, segment);
                    for (i64 r = row_lane; r < s.rows; r += row_lanes)
                        sum += to_float(values[(s.first + r) * channels + channel]);
                }
            }
            partial[threadIdx.x] = sum;
            __syncthreads();
            if (row_lane == 0 && channel < channels) {
                real* gradient = gradients + expert * gradient_stride + channel;
                float total = accumulate ? to_float(*gradient) : 0.0f;
                for (int i = 0; i < row_lanes; i++) total += partial[i * WARP + lane()];
                *gradient = to_real(total);
            }
            __syncthreads();
        }
    }
}
