// Vectors of the widest width that the target has, and the elementary functions on them.
//
// Built on GCC's vector extensions, so that every CPU has them. Nothing here may lose a NaN: the engine tells damaged
// weights and overflow by the logits.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define BLOOM_INLINE inline __attribute__((always_inline))

namespace bloom {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
constexpr int LINE = 64;  // bytes of a cache line

using Floats = float __attribute__((vector_size(WIDTH * 4)));
using Ints = int32_t __attribute__((vector_size(WIDTH * 4)));
using Bytes = uint8_t __attribute__((vector_size(WIDTH)));

// x - 0 is x for every x, -0 included; 0 + x is not.
BLOOM_INLINE Floats all(float x) { return x - Floats{}; }
BLOOM_INLINE Ints all(int32_t x) { return x - Ints{}; }

template <class Vector, class Element>
BLOOM_INLINE Vector load(const Element* from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class Vector, class Element>
BLOOM_INLINE void store(Element* to, Vector v) {
    std::memcpy(to, &v, sizeof v);
}

// The first `count` lanes; the others are 0.
BLOOM_INLINE Floats load_part(const float* from, int64_t count) {
#if defined(__AVX512F__)
    return (Floats)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
#else
    Floats v{};
    for (int64_t i = 0; i < count; ++i) v[i] = from[i];
    return v;
#endif
}

BLOOM_INLINE void store_part(float* to, Floats v, int64_t count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)v);
#else
    for (int64_t i = 0; i < count; ++i) to[i] = v[i];
#endif
}

BLOOM_INLINE Floats load_up_to(const float* from, int64_t count) {
    return count >= WIDTH ? load<Floats>(from) : load_part(from, count);
}

BLOOM_INLINE void store_up_to(float* to, Floats v, int64_t count) {
    if (count >= WIDTH) store(to, v);
    else store_part(to, v, count);
}

BLOOM_INLINE void prefetch(const void* at) { __builtin_prefetch(at, 0, 3); }

BLOOM_INLINE Ints bits(Floats v) { return load<Ints>(&v); }
BLOOM_INLINE Floats from_bits(Ints v) { return load<Floats>(&v); }
BLOOM_INLINE Floats absolute(Floats v) { return from_bits(bits(v) & 0x7fffffff); }
// A NaN in `a` is lost, one in `b` stays.
BLOOM_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// Lane i is lane from[i] of the pair (a, b).
BLOOM_INLINE Floats shuffle(Floats a, Floats b, Ints from) {
#if defined(__clang__)
    Floats v{};
    for (int i = 0; i < WIDTH; ++i) v[i] = from[i] < WIDTH ? a[from[i]] : b[from[i] - WIDTH];
    return v;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

// Sums and maxima over lanes go by halves, so their order is the same for every caller.
BLOOM_INLINE float sum(Floats v) {
    float lane[WIDTH];
    store(lane, v);
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
}

BLOOM_INLINE float max(Floats v) {
    float most = v[0];
    for (int i = 1; i < WIDTH; ++i) most = v[i] > most ? v[i] : most;
    return most;
}

// Adding it rounds a float to the nearest integer, which then stands in the low bits.
constexpr float ROUNDER = 12582912.0f;

// e^x to about one unit in the last place; 0 below -87.3, NaN for NaN.
// Source: the Cephes library's expf.
BLOOM_INLINE Floats exp(Floats x) {
    const Floats low = all(-87.3f), high = all(88.3f);
    const Ints vanishes = x < low;
    x = x < low ? low : x;
    x = x > high ? high : x;
    const Floats rounded = x * 1.44269504f + ROUNDER;
    const Floats n = rounded - ROUNDER;
    Floats r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    Floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const Floats power = from_bits((bits(rounded) << 23) + (127 << 23));
    return vanishes ? Floats{} : p * power;
}

// GELU by tanh, as Bloom was trained with: x/2 (1 + tanh u) = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3).
BLOOM_INLINE Floats gelu(Floats x) {
    const Floats u = x * 0.79788456f * (x * x * 0.044715f + 1.0f);
    return x / (exp(u * -2.0f) + 1.0f);
}

// Lane i of the result is the sum over the lanes of rows[i]. Overwrites rows.
BLOOM_INLINE Floats sums_of(Floats (&rows)[WIDTH]) {
    Ints lane;
    for (int i = 0; i < WIDTH; ++i) lane[i] = i;
#pragma GCC unroll 4
    for (int half = WIDTH / 2; half; half /= 2) {
        const Ints second = (lane & half) ? all(WIDTH) : Ints{};  // lanes that belong to the second of a pair
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) {
            const Floats a = rows[i], b = rows[i + half];
            rows[i] = shuffle(a, b, lane + second) + shuffle(a, b, (lane ^ half) + second);
        }
    }
    return rows[0];
}

}  // namespace bloom
