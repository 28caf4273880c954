// Kernels that are wrong on purpose: the tests of the host build insist that each fault is caught.

PLAIN_KERNEL(fault_missing_barrier)(float* out) {
    float* shared = reinterpret_cast<float*>(dyn_smem);
    shared[threadIdx.x] = (float)threadIdx.x;
    out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

PLAIN_KERNEL(fault_divergent_barrier)(float* out) {
    if (threadIdx.x % 2) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 0.0f;
}

PLAIN_KERNEL(fault_lane_missing)(float* out) {
    if (lane() < 16) out[threadIdx.x] = __shfl_sync(ALL_LANES, 1.0f, 0);
    else __syncthreads();
}

PLAIN_KERNEL(fault_uninitialised_shared)(float* out) { out[threadIdx.x] = reinterpret_cast<float*>(dyn_smem)[threadIdx.x]; }

PLAIN_KERNEL(fault_shared_overrun)(float* out) {
    reinterpret_cast<float*>(dyn_smem)[blockDim.x + threadIdx.x] = 0.0f;
    out[threadIdx.x] = 0.0f;
}

PLAIN_KERNEL(fault_counter_not_atomic)(float* out) { out[0] += 1.0f; }

PLAIN_KERNEL(fault_shuffle_orders_nothing)(float* out) {
    if (lane() == 0) out[0] = 1.0f;
    float v = __shfl_sync(ALL_LANES, 0.0f, 0);
    if (lane() == 1) out[1] = v + out[0];
}

// Right: the same three with what was missing. The race check must let them pass.
PLAIN_KERNEL(right_barrier)(float* out) {
    float* shared = reinterpret_cast<float*>(dyn_smem);
    shared[threadIdx.x] = (float)threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}
PLAIN_KERNEL(right_counter)(float* out) { atomicAdd(out, 1.0f); }
PLAIN_KERNEL(right_warp)(float* out) {
    if (lane() == 0) out[0] = 1.0f;
    __syncwarp();
    if (lane() == 1) out[1] = out[0];
}
