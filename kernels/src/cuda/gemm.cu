// Tiled matrix products, the fall-back where cuBLAS is absent. Row-major, fp32 sums in order of k, so a result depends
// neither on the grid nor on the batch. Batched over segments of rows: segment s multiplies with the matrix of expert
// s % experts; segments may be uneven (dropless). A block makes a 64 x 64 tile, 4 x 4 a thread.

namespace {

constexpr int TILE = 64;
constexpr int DEPTH = 16;
constexpr int PER_THREAD = 4;
constexpr int THREADS = 256;
constexpr int SIDE = TILE / PER_THREAD;

// Element (row, column) of a matrix of `columns` columns, or of its transpose, zero outside.
template <bool TRANSPOSED>
__device__ __forceinline__ float element(const real* matrix, i64 row, i64 column, i64 rows, i64 columns) {
    if (row >= rows || column >= columns) return 0.0f;
    return to_float(TRANSPOSED ? matrix[column * rows + row] : matrix[row * columns + column]);
}

// Adds A (m, k) times B (k, n) to the 4 x 4 sums of this thread, for the tile that starts at (row, column). A or B may
// be stored transposed. The shared tiles are [DEPTH][TILE] each. All threads of the block call it together.
template <bool A_TRANSPOSED, bool B_TRANSPOSED>
__device__ __forceinline__ void multiply_tile(const real* a, const real* b, i64 m, i64 n, i64 k, i64 row, i64 column,
                                              float (&sums)[PER_THREAD][PER_THREAD]) {
    float* a_tile = reinterpret_cast<float*>(dyn_smem);
    float* b_tile = a_tile + DEPTH * TILE;
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    for (i64 base = 0; base < k; base += DEPTH) {
#pragma unroll
        for (int step = 0; step < DEPTH * TILE / THREADS; step++) {
            int i = threadIdx.x + step * THREADS;
            // Neighbouring threads read along the direction that is adjacent in memory.
            int a_depth = A_TRANSPOSED ? i / TILE : i % DEPTH, a_row = A_TRANSPOSED ? i % TILE : i / DEPTH;
            int b_depth = B_TRANSPOSED ? i % DEPTH : i / TILE, b_column = B_TRANSPOSED ? i / DEPTH : i % TILE;
            a_tile[a_depth * TILE + a_row] = element<A_TRANSPOSED>(a, row + a_row, base + a_depth, m, k);
            b_tile[b_depth * TILE + b_column] = element<B_TRANSPOSED>(b, base + b_depth, column + b_column, k, n);
        }
        __syncthreads();
#pragma unroll
        for (int depth = 0; depth < DEPTH; depth++) {
            float left[PER_THREAD], right[PER_THREAD];
#pragma unroll
            for (int i = 0; i < PER_THREAD; i++) {
                left[i] = a_tile[depth * TILE + y * PER_THREAD + i];
                right[i] = b_tile[depth * TILE + x * PER_THREAD + i];
            }
#pragma unroll
            for (int i = 0; i < PER_THREAD; i++)
#pragma unroll
                for (int j = 0; j < PER_THREAD; j++) sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
        }
        __syncthreads();
    }
}

__device__ __forceinline__ void clear(float (&sums)[PER_THREAD][PER_THREAD]) {
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++)
#pragma unroll
        for (int j = 0; j < PER_THREAD; j++) sums[i][j] = 0.0f;
}

__device__ __forceinline__ void write_tile(real* c, i64 m, i64 n, i64 row, i64 column, int accumulate,
                                           const float (&sums)[PER_THREAD][PER_THREAD]) {
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        i64 r = row + y * PER_THREAD + i;
#pragma unroll
        for (int j = 0; j < PER_THREAD; j++) {
            i64 at = column + x * PER_THREAD + j;
            if (r < m && at < n) {
                real* out = c + r * n + at;
                *out = to_real(accumulate ? to_float(*out) + sums[i][j] : sums[i][j]);
            }
        }
    }
}

// Rows of every segment times the expert's matrix, stored (k, n) or, transposed, (n, k).
template <bool B_TRANSPOSED>
__device__ __forceinline__ void multiply_rows(const real* a, const real* b, real* c, const i64* starts,
                                              i64 rows_per_segment, int segments, int experts, i64 n, i64 k,
                                              i64 matrix_stride, int accumulate) {
    i64 column_tiles = (n + TILE - 1) / TILE;
    for (int segment = blockIdx.z; segment < segments; segment += gridDim.z) {
        Segment s = segment_at(starts, rows_per_segment, segment);
        const real* matrix = b + segment % experts * matrix_stride;
        i64 row_tiles = (s.rows + TILE - 1) / TILE;
        for (i64 row = blockIdx.x; row < row_tiles; row += gridDim.x) {
            for (i64 column = blockIdx.y; column < column_tiles; column += gridDim.y) {
                float sums[PER_THREAD][PER_THREAD];
                clear(sums);
                multiply_tile<false, B_TRANSPOSED>(a + s.first * k, matrix, s.rows, n, k, row * TILE, column * TILE, sums);
                write_tile(c + s.first * n, s.rows, n, row * TILE, column * TILE, accumulate, sums);
            }
        }
    }
}

}  // namespace

// C (rows, n) = A (rows, k) B_e (k, n): output of an expert.
REAL_KERNEL(gemm_nn)(const real* __restrict__ a, const real* __restrict__ b, real* __restrict__ c,
                     const i64* __restrict__ starts, i64 rows_per_segment, int segments, int experts, i64 n, i64 k,
                     i64 matrix_stride, int accumulate) {
    multiply_rows<false>(a, b, c, starts, rows_per_segment, segments, experts, n, k, matrix_stride, accumulate);
}

// C (rows, n) = A (rows, k) B_e^T, B_e (n, k): gradient of an expert's input.
REAL_KERNEL(gemm_nt)(const real* __restrict__ a, const real* __restrict__ b, real* __restrict__ c,
                     const i64* __restrict__ starts, i64 rows_per_segment, int segments, int experts, i64 n, i64 k,
                     i64 matrix_stride, int accumulate) {
    multiply_rows<true>(a, b, c, starts, rows_per_segment, segments, experts, n, k, matrix_stride, accumulate);
}

// C_e (m, n) = sum over the segments of e of A^T B, A (rows, m), B (rows, n): gradient of an expert's weight.
REAL_KERNEL(gemm_tn)(const real* __restrict__ a, const real* __restrict__ b, real* __restrict__ c,
                     const i64* __restrict__ starts, i64 rows_per_segment, int segments, int experts, i64 m, i64 n,
                     i64 matrix_stride, int accumulate) {
    i64 row_tiles = (m + TILE - 1) / TILE, column_tiles = (n + TILE - 1) / TILE;
    for (int expert = blockIdx.z; expert < experts; expert += gridDim.z) {
        for (i64 row = blockIdx.x; row < row_tiles; row += gridDim.x) {
            for (i64 column = blockIdx.y; column < column_tiles; column += gridDim.y) {
                float sums[PER_THREAD][PER_THREAD];
                clear(sums);
                for (int segment = expert; segment < segments; segment += experts) {
                    Segment s = segment_at(starts, rows_per_segment, segment);
                    multiply_tile<true, false>(a + s.first * m, b + s.first * n, m, n, s.rows, row * TILE, column * TILE,
                                               sums);
                }
                write_tile(c + expert * matrix_stride, m, n, row * TILE, column * TILE, accumulate, sums);
            }
        }
    }
}
