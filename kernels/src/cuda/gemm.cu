// Tiled matrix products, the fall-back where cuBLAS is absent. fp32 sums in order of k, so a result depends neither on
// the grid nor on what else is in the list. A list of products of any shape is one launch: dropless experts need no
// padding. Products in a row that add to the same result form a chain and are summed in order.

namespace {

constexpr int TILE = 64;
constexpr int DEPTH = 16;
constexpr int PER_THREAD = 4;
constexpr int THREADS = 256;
constexpr int SIDE = TILE / PER_THREAD;

// A matrix with free strides, so that a transpose is a matrix too. Elements outside are zero.
struct Strided {
    const real* first;
    i64 row_stride, column_stride, rows, columns;
    __device__ __forceinline__ float at(i64 row, i64 column) const {
        if (row >= rows || column >= columns) return 0.0f;
        return to_float(first[row * row_stride + column * column_stride]);
    }
};

// Adds A (m, k) times B (k, n) to the 4 x 4 sums of this thread, for the tile that starts at (row, column). The shared tiles
// are [DEPTH][TILE] each. All threads of the block call it together.
__device__ __forceinline__ void multiply_tile(const Strided& a, const Strided& b, i64 row, i64 column,
                                              float (&sums)[PER_THREAD][PER_THREAD]) {
    float* a_tile = reinterpret_cast<float*>(dyn_smem);
    float* b_tile = a_tile + DEPTH * TILE;
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    // Neighbouring threads read along the direction that is adjacent in memory.
    bool a_along_depth = a.column_stride == 1, b_along_depth = b.column_stride != 1;
    for (i64 base = 0; base < a.columns; base += DEPTH) {
#pragma unroll
        for (int step = 0; step < DEPTH * TILE / THREADS; step++) {
            int i = threadIdx.x + step * THREADS;
            int a_depth = a_along_depth ? i % DEPTH : i / TILE, a_row = a_along_depth ? i / DEPTH : i % TILE;
            int b_depth = b_along_depth ? i % DEPTH : i / TILE, b_column = b_along_depth ? i / DEPTH : i % TILE;
            a_tile[a_depth * TILE + a_row] = a.at(row + a_row, base + a_depth);
            b_tile[b_depth * TILE + b_column] = b.at(base + b_depth, column + b_column);
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

// One product of the list, 12 numbers: addresses of A, B and C; m, n, k; strides of A and B by row and by column; the row
// stride of C, whose columns are adjacent; whether it is added to what C holds.
constexpr int PRODUCT = 12;

}  // namespace

// chains (chains + 1): the first product of each chain. blockIdx.z is a chain, x and y its tiles.
REAL_KERNEL(gemm)(const i64* __restrict__ products, const i64* __restrict__ chains, int num_chains) {
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    for (int chain = blockIdx.z; chain < num_chains; chain += gridDim.z) {
        const i64* head = products + chains[chain] * PRODUCT;
        i64 m = head[3], n = head[4], c_stride = head[10];
        real* c = reinterpret_cast<real*>(head[2]);
        i64 row_tiles = (m + TILE - 1) / TILE, column_tiles = (n + TILE - 1) / TILE;
        for (i64 row_tile = blockIdx.x; row_tile < row_tiles; row_tile += gridDim.x) {
            for (i64 column_tile = blockIdx.y; column_tile < column_tiles; column_tile += gridDim.y) {
                i64 row = row_tile * TILE, column = column_tile * TILE;
                float sums[PER_THREAD][PER_THREAD];
#pragma unroll
                for (int i = 0; i < PER_THREAD; i++)
#pragma unroll
                    for (int j = 0; j < PER_THREAD; j++) sums[i][j] = 0.0f;
                for (i64 link = chains[chain]; link < chains[chain + 1]; link++) {
                    const i64* p = products + link * PRODUCT;
                    Strided a = {reinterpret_cast<const real*>(p[0]), p[6], p[7], m, p[5]};
                    Strided b = {reinterpret_cast<const real*>(p[1]), p[8], p[9], p[5], n};
                    multiply_tile(a, b, row, column, sums);
                }
#pragma unroll
                for (int i = 0; i < PER_THREAD; i++) {
                    i64 r = row + y * PER_THREAD + i;
#pragma unroll
                    for (int j = 0; j < PER_THREAD; j++) {
                        i64 at = column + x * PER_THREAD + j;
                        if (r < m && at < n) {
                            real* out = c + r * c_stride + at;
                            *out = to_real(head[11] ? to_float(*out) + sums[i][j] : sums[i][j]);
                        }
                    }
                }
            }
        }
    }
}
