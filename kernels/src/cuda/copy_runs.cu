// Copies runs of bytes: runs (n, 3) are source address, offset in the target, bytes. The stride memory copies of 2DH
// (Algorithm 2, phases 1 and 3), the repetition of blocks (r > 1), the gathering of a conventional layout's blocks and the
// exchange between ranks of one GPU are all this. blockIdx.y is a run.
PLAIN_KERNEL(copy_runs)(char* target, const i64* __restrict__ runs, int num_runs) {
    for (int run = blockIdx.y; run < num_runs; run += gridDim.y) {
        const char* source = reinterpret_cast<const char*>(runs[3 * run]);
        copy_bytes(source, target + runs[3 * run + 1], runs[3 * run + 2], global_thread(), num_threads());
    }
}
