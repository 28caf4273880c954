// Sums over the rows of every expert: first of each slice of a few rows, as many blocks at once as there are slices and
// columns, then of an expert's slices. fp32 sums in a fixed order. A block is 32 columns by 8 lanes of rows or slices.

namespace {

// Sum over the lanes of rows of what every thread brings, for row lane 0.
__device__ __forceinline__ float sum_lanes(float mine) {
    float* partial = reinterpret_cast<float*>(dyn_smem);  // [row lanes][32]
    partial[threadIdx.x] = mine;
    __syncthreads();
    float sum = 0.0f;
    if (threadIdx.x < WARP)
        for (int i = lane(); i < blockDim.x; i += WARP) sum += partial[i];
    __syncthreads();
    return sum;
}

}  // namespace

// sums (slices, bias_columns): of `bias_columns` of the columns from `first_column` on. slices (n, 2): first row, rows.
REAL_KERNEL(slice_sums)(const real* __restrict__ values, float* __restrict__ sums, const i64* __restrict__ slices,
                        int num_slices, i64 columns, i64 first_column, i64 bias_columns) {
    int row_lanes = blockDim.x / WARP, row_lane = threadIdx.x / WARP;
    i64 tiles = (bias_columns + WARP - 1) / WARP;
    for (int slice = blockIdx.y; slice < num_slices; slice += gridDim.y) {
        i64 first = slices[2 * slice], rows = slices[2 * slice + 1];
        for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            i64 column = tile * WARP + lane();
            float sum = 0.0f;
            if (column < bias_columns) {
                const real* here = values + first * columns + first_column + column;
#pragma unroll 8
                for (i64 row = row_lane; row < rows; row += row_lanes) sum += to_float(here[row * columns]);
            }
            sum = sum_lanes(sum);
            if (row_lane == 0 && column < bias_columns) sums[slice * bias_columns + column] = sum;
        }
    }
}

// gradients: an expert's slices summed; zeros for one without. experts (E, 3): first slice, slices, offset of the gradient.
// blockIdx.y is an expert. `accumulate` adds to what the gradient holds.
REAL_KERNEL(bias_gradient)(const float* __restrict__ sums, real* __restrict__ gradients,
                           const i64* __restrict__ experts, int num_experts, i64 bias_columns, int accumulate) {
    int row_lanes = blockDim.x / WARP, row_lane = threadIdx.x / WARP;
    i64 tiles = (bias_columns + WARP - 1) / WARP;
    for (int expert = blockIdx.y; expert < num_experts; expert += gridDim.y) {
        i64 first = experts[3 * expert], slices = experts[3 * expert + 1];
        for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            i64 column = tile * WARP + lane();
            float sum = 0.0f;
            if (column < bias_columns) {
                const float* here = sums + first * bias_columns + column;
#pragma unroll 8
                for (i64 slice = row_lane; slice < slices; slice += row_lanes) sum += here[slice * bias_columns];
            }
            sum = sum_lanes(sum);
            if (row_lane == 0 && column < bias_columns) {
                real* gradient = gradients + experts[3 * expert + 2] + column;
                *gradient = to_real(accumulate ? to_float(*gradient) + sum : sum);
            }
        }
    }
}
