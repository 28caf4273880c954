// Vectors at a given length: how a cosine gate compares tokens with experts. fp32 whatever the layer's number type, one warp
// a vector; vector v has its channel c at v * vector_stride + c * channel_stride.

namespace {

constexpr float SHORTEST = 1e-12f;              // below it a vector counts as this long, as in PyTorch's normalize
constexpr float LARGEST_TEMPERATURE = 4.6051702f;  // ln 100

// exp(min(temperature, ln 100)), or 1 without a temperature.
__device__ __forceinline__ float target_length(const float* temperature) {
    return temperature ? expf(fminf(*temperature, LARGEST_TEMPERATURE)) : 1.0f;
}

}  // namespace

// to = from * factor, factor (num_vectors) = length / |from|. In place is allowed.
PLAIN_KERNEL(normalize)(const float* from, const float* __restrict__ temperature, float* to, float* __restrict__ factors,
                        i64 num_vectors, i64 channels, i64 vector_stride, i64 channel_stride) {
    float length = target_length(temperature);
    for (i64 vector = global_warp(); vector < num_vectors; vector += num_warps()) {
        const float* x = from + vector * vector_stride;
        float* y = to + vector * vector_stride;
        float squares = 0.0f;
        for (i64 c = lane(); c < channels; c += WARP) {
            float value = x[c * channel_stride];
            squares += value * value;
        }
        float factor = length / fmaxf(sqrtf(warp_sum(squares)), SHORTEST);
        for (i64 c = lane(); c < channels; c += WARP) y[c * channel_stride] = x[c * channel_stride] * factor;
        if (lane() == 0) factors[vector] = factor;
    }
}

// Backward of `normalize`, from the gradient of what it wrote to that of what it read, which may be the same memory:
// dx = factor * (dy - y (y . dy) / length^2). dots (num_vectors): y . dy, whose sum is the gradient of the temperature; zero
// where that has none.
PLAIN_KERNEL(normalize_gradient)(const float* __restrict__ normalized, const float* __restrict__ factors,
                                 const float* __restrict__ temperature, const float* normalized_gradient,
                                 float* gradient, float* __restrict__ dots, i64 num_vectors, i64 channels,
                                 i64 vector_stride, i64 channel_stride) {
    float length = target_length(temperature);
    bool learns = temperature && *temperature < LARGEST_TEMPERATURE;
    for (i64 vector = global_warp(); vector < num_vectors; vector += num_warps()) {
        const float* y = normalized + vector * vector_stride;
        const float* dy = normalized_gradient + vector * vector_stride;
        float* dx = gradient + vector * vector_stride;
        float dot = 0.0f;
        for (i64 c = lane(); c < channels; c += WARP) dot += y[c * channel_stride] * dy[c * channel_stride];
        dot = warp_sum(dot);
        float factor = factors[vector], along = dot / (length * length);
        for (i64 c = lane(); c < channels; c += WARP) {
            i64 at = c * channel_stride;
            dx[at] = factor * (dy[at] - y[at] * along);
        }
        if (lane() == 0) dots[vector] = learns ? dot : 0.0f;
    }
}
