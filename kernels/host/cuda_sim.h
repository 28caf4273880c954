// The CUDA device language as far as our kernels speak it, on the CPU. One OS thread runs one block at a time; the
// threads of the block are fibers that switch at barriers and warp primitives only (see sim.cpp).
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

// Never merged into the launcher, which is not instrumented.
#if defined(__clang__)
#define __global__ __attribute__((noinline))
#else
#define __global__ __attribute__((noipa))
#endif
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict
// Kernels have dynamic shared memory only, under one name; every OS thread, hence every running block, has its own.
#define __shared__ __thread

struct uint3 {
    unsigned x, y, z;
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

namespace sim {
// All of these live in sim.cpp, which is not instrumented: what they touch is not a kernel's access.
uint3 thread_index();
uint3 block_index();
uint3 block_dim();
uint3 grid_dim();
unsigned lane();
void barrier(int site);
void sync_warp(uint32_t mask);
// Hands `bits` to the warp and returns what `source` handed in. All lanes of `mask` must take part.
uint64_t exchange(uint32_t mask, uint64_t bits, unsigned source);
// The lanes of `mask` whose predicate is set, and those whose value equals the caller's.
uint32_t ballot(uint32_t mask, bool predicate);
uint32_t match(uint32_t mask, uint64_t bits);
float atomic_add(float* p, float v);
int atomic_add(int* p, int v);

// A kernel as the launcher sees it: parameter kinds come from the C++ signature.
// 'p' pointer, 'l' 64-bit integer, 'i' 32-bit integer, 'f' float.
struct Kernel {
    const char* name;
    const char* parameters;
    void (*call)(void**);
};
template <class A> constexpr char kind() {
    if constexpr (std::is_pointer_v<A>) return 'p';
    else if constexpr (std::is_same_v<A, long long>) return 'l';
    else if constexpr (std::is_same_v<A, int>) return 'i';
    else if constexpr (std::is_same_v<A, float>) return 'f';
}
template <auto F> struct Entry;
template <class... A, void (*F)(A...)> struct Entry<F> {
    static constexpr char parameters[] = {kind<A>()..., 0};
    template <size_t... I>
    __attribute__((no_sanitize("thread"))) static void unpack(void** p, std::index_sequence<I...>) {
        F(*static_cast<A*>(p[I])...);
    }
    __attribute__((no_sanitize("thread"))) static void call(void** p) { unpack(p, std::index_sequence_for<A...>{}); }
    static constexpr Kernel make(const char* name) { return {name, parameters, &call}; }
};
template <class T> inline uint64_t to_bits(T v) {
    static_assert(sizeof(T) <= 8, "warp primitives move at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof(T));
    return bits;
}
template <class T> inline T from_bits(uint64_t bits) {
    T v;
    memcpy(&v, &bits, sizeof(T));
    return v;
}
}  // namespace sim

#define threadIdx (::sim::thread_index())
#define blockIdx (::sim::block_index())
#define blockDim (::sim::block_dim())
#define gridDim (::sim::grid_dim())
#define __syncthreads() ::sim::barrier(__LINE__)

inline void __syncwarp(unsigned mask = ~0u) { ::sim::sync_warp(mask); }
template <class T> inline T __shfl_sync(unsigned mask, T v, int source) {
    return sim::from_bits<T>(sim::exchange(mask, sim::to_bits(v), source & 31));
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T v, int distance) {
    return sim::from_bits<T>(sim::exchange(mask, sim::to_bits(v), sim::lane() ^ distance));
}
template <class T> inline T __shfl_up_sync(unsigned mask, T v, int distance) {
    int own = sim::lane(), source = own - distance;
    return sim::from_bits<T>(sim::exchange(mask, sim::to_bits(v), source < 0 ? own : source));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return sim::ballot(mask, predicate != 0); }
template <class T> inline unsigned __match_any_sync(unsigned mask, T v) { return sim::match(mask, sim::to_bits(v)); }
inline float atomicAdd(float* p, float v) { return sim::atomic_add(p, v); }
inline int atomicAdd(int* p, int v) { return sim::atomic_add(p, v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __float_as_uint(float v) { return sim::from_bits<unsigned>(sim::to_bits(v)); }
inline float __uint_as_float(unsigned v) { return sim::from_bits<float>(sim::to_bits(v)); }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float __int_as_float(int v) { return sim::from_bits<float>(sim::to_bits(v)); }
inline long long min(long long a, long long b) { return a < b ? a : b; }
