// Repeats every block `copies` times in a row (r > 1): to[block][copy] = from[block]. With one block, `to` may be `from`.
// blockIdx.y is a block.
PLAIN_KERNEL(repeat)(const char* from, char* to, i64 blocks, int copies, i64 block_bytes) {
    for (i64 block = blockIdx.y; block < blocks; block += gridDim.y) {
        const char* source = from + block * block_bytes;
        for (int copy = 0; copy < copies; copy++) {
            char* target = to + (block * copies + copy) * block_bytes;
            if (target != source) copy_bytes(source, target, block_bytes, global_thread(), num_threads());
        }
    }
}
