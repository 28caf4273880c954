// Sums over the rows of every expert: first of each slice of a few rows, as many blocks at once as there are slices and
// columns, then of an expert's slices. fp32 sums in a fixed order. A block is 32 lanes of columns by 8 lanes of rows or
// slices.

namespace {

// Sums over the lanes of rows of what every thread brings, for row lane 0.
template <int N> __device__ __forceinline__ Floats<N> sum_lanes(const Floats<N>& mine) {
    float* partial = reinterpret_cast<float*>(dyn_smem);  // [threads]
    Floats<N> sum;
#pragma unroll
    for (int i = 0; i < N; i++) {
        partial[threadIdx.x] = mine.v[i];
        __syncthreads();
        sum.v[i] = 0.0f;
        if (threadIdx.x < WARP)
            for (int t = lane(); t < blockDim.x; t += WARP) sum.v[i] += partial[t];
        __syncthreads();
    }
    return sum;
}

// Column sums of `rows` rows, N columns a lane.
template <int N>
__device__ __forceinline__ void sum_slice(const real* values, float* sums, i64 rows, i64 columns, i64 bias_columns) {
    int row_lanes = blockDim.x / WARP, row_lane = threadIdx.x / WARP;
    i64 tiles = (bias_columns + WARP * N - 1) / (WARP * N);
    for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        i64 column = (tile * WARP + lane()) * N;
        Floats<N> sum;
#pragma unroll
        for (int i = 0; i < N; i++) sum.v[i] = 0.0f;
        if (column < bias_columns) {
#pragma unroll 4
            for (i64 row = row_lane; row < rows; row += row_lanes) {
                auto v = load<N>(values + row * columns + column);
#pragma unroll
                for (int i = 0; i < N; i++) sum.v[i] += v.v[i];
            }
        }
        sum = sum_lanes(sum);
        if (row_lane == 0 && column < bias_columns) {
#pragma unroll
            for (int i = 0; i < N; i++) sums[column + i] = sum.v[i];
        }
    }
}

}  // namespace

// sums (slices, bias_columns): of `bias_columns` of the columns from `first_column` on. slices (n, 2): first row, rows.
REAL_KERNEL(slice_sums)(const real* __restrict__ values, float* __restrict__ sums, const i64* __restrict__ slices,
                        int num_slices, i64 columns, i64 first_column, i64 bias_columns) {
    for (int slice = blockIdx.y; slice < num_slices; slice += gridDim.y) {
        i64 rows = slices[2 * slice + 1];
        const real* first = values + slices[2 * slice] * columns + first_column;
        float* to = sums + slice * bias_columns;
        bool wide = (address(first) & 15) == 0 && columns % WIDE == 0 && bias_columns % WIDE == 0;
        if (wide)
            sum_slice<WIDE>(first, to, rows, columns, bias_columns);
        else
            sum_slice<1>(first, to, rows, columns, bias_columns);
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
            Floats<1> sum = {{0.0f}};
            if (column < bias_columns) {
                const float* here = sums + first * bias_columns + column;
#pragma unroll 8
                for (i64 slice = row_lane; slice < slices; slice += row_lanes) sum.v[0] += here[slice * bias_columns];
            }
            float total = sum_lanes(sum).v[0];
            if (row_lane == 0 && column < bias_columns) {
                real* gradient = gradients + experts[3 * expert + 2] + column;
                *gradient = to_real(accumulate ? to_float(*gradient) + total : total);
            }
        }
    }
}
