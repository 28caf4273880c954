// Between the layer's number type and the gate's fp32.

REAL_KERNEL(cast_to_float)(const real* __restrict__ from, float* __restrict__ to, i64 count) {
    for (i64 i = global_thread(); i < count; i += num_threads()) to[i] = to_float(from[i]);
}

// to = from, or to += from where `accumulate` is set.
REAL_KERNEL(cast_from_float)(const float* __restrict__ from, real* __restrict__ to, i64 count, int accumulate) {
    for (i64 i = global_thread(); i < count; i += num_threads())
        to[i] = to_real(accumulate ? to_float(to[i]) + from[i] : from[i]);
}
