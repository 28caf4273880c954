// to[i] = from[index[i]], rows of bytes; a row of index -1 is zeroed. Any reordering: uneven exchanges, blocks of a
// conventional layout, rows of a dropless buffer. One warp a row.
PLAIN_KERNEL(gather_rows)(const char* __restrict__ from, char* __restrict__ to, const int* __restrict__ index, i64 rows,
                          i64 row_bytes) {
    for (i64 row = global_warp(); row < rows; row += num_warps()) {
        i64 source = index[row];
        char* target = to + row * row_bytes;
        if (source >= 0) {
            copy_bytes(from + source * row_bytes, target, row_bytes, lane(), WARP);
        } else {
            for (i64 i = lane(); i < row_bytes; i += WARP) target[i] = 0;
        }
    }
}
