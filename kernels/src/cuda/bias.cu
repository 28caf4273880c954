// Adds an expert's bias to its rows, in place. A bias covers `bias_columns` of the columns, from `first_column` on (with r > 1
// every slice of an expert adds its part). runs (n, 3): first row, rows, offset of the bias. One warp a row, blockIdx.y a run.
REAL_KERNEL(bias)(real* values, const real* __restrict__ biases, const i64* __restrict__ runs, int num_runs, i64 columns,
                  i64 first_column, i64 bias_columns) {
    for (int run = blockIdx.y; run < num_runs; run += gridDim.y) {
        i64 first = runs[3 * run], rows = runs[3 * run + 1];
        const real* bias = biases + runs[3 * run + 2];
        for (i64 r = global_warp(); r < rows; r += num_warps()) {
            real* row = values + (first + r) * columns + first_column;
            for_each(bias_columns, address(row) | address(bias), lane(), WARP, [&](i64 at, auto width) {
                auto v = load<width.n>(row + at);
                auto b = load<width.n>(bias + at);
#pragma unroll
                for (int i = 0; i < width.n; i++) v.v[i] += b.v[i];
                store(row + at, v);
            });
        }
    }
}
