// Sums the rows of every expert over all its runs into its bias gradient, for `bias_columns` of the columns from
// `first_column` on. runs (n, 2): first row, rows. experts (E, 3): first run, runs, offset of the gradient; one without runs
// gets zeros. fp32 sums in a fixed order. A block is 32 columns by 8 lanes of rows, blockIdx.y an expert. `accumulate` adds to
// what the gradient holds.
REAL_KERNEL(bias_gradient)(const real* __restrict__ values, real* __restrict__ gradients, const i64* __restrict__ runs,
                           const i64* __restrict__ experts, int num_experts, i64 columns, i64 first_column,
                           i64 bias_columns, int accumulate) {
    float* partial = reinterpret_cast<float*>(dyn_smem);  // [row lanes][32]
    int row_lanes = blockDim.x / WARP, row_lane = threadIdx.x / WARP;
    i64 tiles = (bias_columns + WARP - 1) / WARP;
    for (int expert = blockIdx.y; expert < num_experts; expert += gridDim.y) {
        i64 first_run = experts[3 * expert], num_runs = experts[3 * expert + 1];
        for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            i64 column = tile * WARP + lane();
            float sum = 0.0f;
            if (column < bias_columns) {
                for (i64 run = first_run; run < first_run + num_runs; run++) {
                    i64 first = runs[2 * run], rows = runs[2 * run + 1];
                    for (i64 r = row_lane; r < rows; r += row_lanes)
                        sum += to_float(values[(first + r) * columns + first_column + column]);
                }
            }
            partial[threadIdx.x] = sum;
            __syncthreads();
            if (row_lane == 0 && column < bias_columns) {
                real* gradient = gradients + experts[3 * expert + 2] + column;
                float total = accumulate ? to_float(*gradient) : 0.0f;
                for (int i = 0; i < row_lanes; i++) total += partial[i * WARP + lane()];
                *gradient = to_real(total);
            }
            __syncthreads();
        }
    }
}
