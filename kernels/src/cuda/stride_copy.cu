// The stride memory copy of 2DH (Algorithm 2, phases 1 and 3): transposes blocks, to[o][column][row] = from[o][row][column].
// It also gathers the W blocks of an expert (conventional layout) and scatters them again. blockIdx.y is a block.
PLAIN_KERNEL(stride_copy)(const char* __restrict__ from, char* __restrict__ to, i64 outer, i64 rows, i64 columns,
                          i64 block_bytes) {
    i64 blocks = outer * rows * columns;
    for (i64 block = blockIdx.y; block < blocks; block += gridDim.y) {
        i64 row = block % rows, column = block / rows % columns, o = block / (rows * columns);
        i64 source = (o * rows + row) * columns + column;
        copy_bytes(from + source * block_bytes, to + block * block_bytes, block_bytes, global_thread(), num_threads());
    }
}
