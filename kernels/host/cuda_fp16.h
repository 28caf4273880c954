// IEEE half as on the device: conversions round to nearest even; arithmetic is the kernels' own, in fp32.
#pragma once
#include "cuda_sim.h"
struct alignas(2) __half {
    uint16_t bits;
};
struct alignas(4) __half2 {
    __half x, y;
};
inline float __half2float(__half h) {
    uint32_t sign = (uint32_t)(h.bits & 0x8000) << 16, exponent = h.bits >> 10 & 31, fraction = h.bits & 1023;
    if (exponent == 31) return sim::from_bits<float>((uint64_t)(sign | 0x7f800000 | fraction << 13));
    float magnitude = exponent ? ldexpf(1024 + fraction, (int)exponent - 25) : ldexpf(fraction, -24);
    return sign ? -magnitude : magnitude;
}
inline __half __float2half_rn(float f) {
    uint32_t u = (uint32_t)sim::to_bits(f), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) return {0x7fff};                        // NaN
    if (magnitude >= 0x477ff000) return {(uint16_t)(sign | 0x7c00)};    // rounds to more than 65504
    if (magnitude < 0x38800000) {                                       // subnormal: an integer times 2^-24
        float scaled = sim::from_bits<float>((uint64_t)magnitude) * 16777216.0f;
        return {(uint16_t)(sign | (uint32_t)nearbyintf(scaled))};
    }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return {(uint16_t)(sign | ((rounded - 0x38000000) >> 13))};
}
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__float2half_rn(a), __float2half_rn(b)}; }
