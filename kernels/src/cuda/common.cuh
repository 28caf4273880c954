// Shared by every kernel. A module's text is this file followed by one `.cu`, compiled once for each
// number type: MOE_DTYPE is 0 for fp32, 1 for fp16, 2 for bf16. There is no host code anywhere, and fp32
// needs no header at all.
#ifndef MOE_DTYPE
#error "MOE_DTYPE selects the number type: 0 fp32, 1 fp16, 2 bf16"
#endif
#if MOE_DTYPE == 1
#include <cuda_fp16.h>
#define MOE_SUFFIX _f16
#elif MOE_DTYPE == 2
#include <cuda_bf16.h>
#define MOE_SUFFIX _bf16
#else
#define MOE_SUFFIX _f32
#endif

#define MOE_JOIN_(a, b) a##b
#define MOE_JOIN(a, b) MOE_JOIN_(a, b)
// 256 threads, and registers for four such blocks on a multiprocessor: left to itself ptxas aims at six and spills.
// An entry point for the module's number type (`encode_f16`) ...
#define REAL_KERNEL(name) extern "C" __global__ void __launch_bounds__(256, 4) MOE_JOIN(name, MOE_SUFFIX)
// ... and one that does not depend on it.
#define PLAIN_KERNEL(name) extern "C" __global__ void __launch_bounds__(256, 4) name

// The only shared memory there is; its size is given at launch.
extern __shared__ __align__(16) unsigned char dyn_smem[];

typedef long long i64;

// Unnamed: the host build links the three number types into one program.
namespace {

#if MOE_DTYPE == 1
typedef __half real;
typedef __half2 real2;
__device__ __forceinline__ float to_float(real v) { return __half2float(v); }
__device__ __forceinline__ real to_real(float v) { return __float2half_rn(v); }
__device__ __forceinline__ float2 to_float2(real2 v) { return __half22float2(v); }
__device__ __forceinline__ real2 to_real2(float a, float b) { return __floats2half2_rn(a, b); }
#elif MOE_DTYPE == 2
typedef __nv_bfloat16 real;
typedef __nv_bfloat162 real2;
__device__ __forceinline__ float to_float(real v) { return __bfloat162float(v); }
__device__ __forceinline__ real to_real(float v) { return __float2bfloat16_rn(v); }
__device__ __forceinline__ float2 to_float2(real2 v) { return __bfloat1622float2(v); }
__device__ __forceinline__ real2 to_real2(float a, float b) { return __floats2bfloat162_rn(a, b); }
#else
typedef float real;
__device__ __forceinline__ float to_float(real v) { return v; }
__device__ __forceinline__ real to_real(float v) { return v; }
#endif

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
// Elements in 16 bytes, the widest access of a thread.
constexpr int WIDE = 16 / sizeof(real);

__device__ __forceinline__ int lane() { return threadIdx.x & (WARP - 1); }
__device__ __forceinline__ i64 global_warp() {
    return ((i64)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
}
__device__ __forceinline__ i64 num_warps() { return (i64)gridDim.x * blockDim.x / WARP; }
__device__ __forceinline__ i64 global_thread() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ i64 num_threads() { return (i64)gridDim.x * blockDim.x; }

// All lanes get the result; the tree is the same whatever the data, so sums repeat bit for bit.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(ALL_LANES, v, distance);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, distance));
    return v;
}

template <int N> struct Floats {
    float v[N];
};

// N adjacent elements as they lie in memory: 16 bytes (N == WIDE), a pair (N == 2), or one.
template <int N> struct Raw {
    typedef uint4 type;
};
template <> struct Raw<1> {
    typedef real type;
};
#if MOE_DTYPE != 0
template <> struct Raw<2> {
    typedef real2 type;
};
#endif
template <int N> __device__ __forceinline__ typename Raw<N>::type load_raw(const real* p) {
    return *reinterpret_cast<const typename Raw<N>::type*>(p);
}
template <int N> __device__ __forceinline__ Floats<N> to_floats(typename Raw<N>::type raw) {
    Floats<N> r;
    if constexpr (N == 1) {
        r.v[0] = to_float(raw);
    } else {
#if MOE_DTYPE == 0
        r.v[0] = __uint_as_float(raw.x), r.v[1] = __uint_as_float(raw.y);
        r.v[2] = __uint_as_float(raw.z), r.v[3] = __uint_as_float(raw.w);
#else
        const real2* pairs = reinterpret_cast<const real2*>(&raw);
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            float2 two = to_float2(pairs[i]);
            r.v[2 * i] = two.x, r.v[2 * i + 1] = two.y;
        }
#endif
    }
    return r;
}

// N adjacent elements as floats.
template <int N> __device__ __forceinline__ Floats<N> load(const real* p) { return to_floats<N>(load_raw<N>(p)); }

template <int N> __device__ __forceinline__ void store(real* p, const Floats<N>& r) {
    if constexpr (N == 1) {
        *p = to_real(r.v[0]);
    } else {
#if MOE_DTYPE == 0
        float4 raw;
        raw.x = r.v[0], raw.y = r.v[1], raw.z = r.v[2], raw.w = r.v[3];
        *reinterpret_cast<float4*>(p) = raw;
#else
        __align__(16) real2 pairs[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) pairs[i] = to_real2(r.v[2 * i], r.v[2 * i + 1]);
        if constexpr (N == 2) {
            *reinterpret_cast<real2*>(p) = pairs[0];
        } else {
            *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(pairs);
        }
#endif
    }
}

template <int N> struct Width {
    static constexpr int n = N;
};

__device__ __forceinline__ size_t address(const void* p) { return reinterpret_cast<size_t>(p); }

// Calls `body(offset, Width<N>)` until [0, count) is covered once by `workers`: with the widest access that
// `addresses`, all addresses in use or-ed together, are aligned for, then element by element for the tail.
template <class Body>
__device__ __forceinline__ void for_each(i64 count, size_t addresses, i64 worker, i64 workers, Body body) {
    i64 done = 0;
    if ((addresses & 15) == 0) {
        i64 wide = count / WIDE;
#pragma unroll 2
        for (i64 i = worker; i < wide; i += workers) body(i * WIDE, Width<WIDE>());
        done = wide * WIDE;
    }
#if MOE_DTYPE != 0
    else if ((addresses & 3) == 0) {
        i64 pairs = count / 2;
#pragma unroll 2
        for (i64 i = worker; i < pairs; i += workers) body(i * 2, Width<2>());
        done = pairs * 2;
    }
#endif
#pragma unroll 1
    for (i64 i = done + worker; i < count; i += workers) body(i, Width<1>());
}

// Independent wide loads a thread has under way: enough of them hide the memory's latency.
constexpr int IN_FLIGHT = 4;

// As `for_each`, in two parts, for elements that are changed in place: `read(offset, width)` of several places goes before
// `write(offset, what was read, width)` of any, which the compiler may not do by itself.
template <class Read, class Write>
__device__ __forceinline__ void for_each_in_place(i64 count, size_t addresses, i64 worker, i64 workers, Read read,
                                                  Write write) {
    i64 done = 0;
    if ((addresses & 15) == 0) {
        i64 wide = count / WIDE, i = worker;
        Width<WIDE> width;
        for (; i + (IN_FLIGHT - 1) * workers < wide; i += IN_FLIGHT * workers) {
            decltype(read(i, width)) got[IN_FLIGHT];
#pragma unroll
            for (int n = 0; n < IN_FLIGHT; n++) got[n] = read((i + n * workers) * WIDE, width);
#pragma unroll
            for (int n = 0; n < IN_FLIGHT; n++) write((i + n * workers) * WIDE, got[n], width);
        }
#pragma unroll 1
        for (; i < wide; i += workers) write(i * WIDE, read(i * WIDE, width), width);
        done = wide * WIDE;
    }
    Width<1> one;
#pragma unroll 1
    for (i64 i = done + worker; i < count; i += workers) write(i, read(i, one), one);
}

// Copies `bytes` bytes with the widest access that both addresses allow.
template <class Unit>
__device__ __forceinline__ i64 copy_units(const char* from, char* to, i64 bytes, i64 worker, i64 workers) {
    i64 units = bytes / (i64)sizeof(Unit), i = worker;
    const Unit* source = reinterpret_cast<const Unit*>(from);
    Unit* target = reinterpret_cast<Unit*>(to);
    for (; i + (IN_FLIGHT - 1) * workers < units; i += IN_FLIGHT * workers) {
        Unit got[IN_FLIGHT];
#pragma unroll
        for (int n = 0; n < IN_FLIGHT; n++) got[n] = source[i + n * workers];
#pragma unroll
        for (int n = 0; n < IN_FLIGHT; n++) target[i + n * workers] = got[n];
    }
    for (; i < units; i += workers) target[i] = source[i];
    return units * (i64)sizeof(Unit);
}
__device__ __forceinline__ void copy_bytes(const char* from, char* to, i64 bytes, i64 worker, i64 workers) {
    size_t addresses = address(from) | address(to);
    i64 done = 0;
    if ((addresses & 15) == 0) {
        done = copy_units<uint4>(from, to, bytes, worker, workers);
    } else if ((addresses & 3) == 0) {
        done = copy_units<unsigned>(from, to, bytes, worker, workers);
    } else if ((addresses & 1) == 0) {
        done = copy_units<unsigned short>(from, to, bytes, worker, workers);
    }
    copy_units<char>(from + done, to + done, bytes - done, worker, workers);
}

}  // namespace
