// What the matrix product is made of, for fp32 and for int8: a step's operands and how it adds to a sum.
#pragma once

#include "vec.h"

namespace bloom {

// One step multiplies one float of a row with one of each column.
struct F32 {
    using Element = float;  // of a row or a packed weight, per step
    using Sums = Floats;
    using Sum = float;
    static constexpr int DEPTH = 1;  // values that a step consumes of a row

    static BLOOM_INLINE Sums wide(const char* row) {
        float x;
        std::memcpy(&x, row, sizeof x);
        return all(x);
    }
    static BLOOM_INLINE Sums step(Sums sums, Sums row, Sums weights) { return sums + row * weights; }
};

// One step multiplies four bytes of a row, unsigned, with four of each column, signed. Exact: no order of summation and
// no width of vectors changes a result.
struct I8 {
    using Element = int32_t;
    using Sums = Ints;
    using Sum = int32_t;
    static constexpr int DEPTH = 4;

    static BLOOM_INLINE Sums wide(const char* row) {
        int32_t x;
        std::memcpy(&x, row, sizeof x);
        return all(x);
    }

    static BLOOM_INLINE Sums step(Sums sums, Sums row, Sums weights) {
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
        return (Sums)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)row, (__m512i)weights);
#elif defined(__AVXVNNI__) && defined(__AVX2__)
        return (Sums)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)row, (__m256i)weights);
#else
        // Even and odd bytes as 16-bit numbers; a pair's products fit 32 bits.
        using Shorts = int16_t __attribute__((vector_size(sizeof(Sums))));
        using Unsigned = uint16_t __attribute__((vector_size(sizeof(Sums))));
        const Shorts even_row = (Shorts)row & 255, odd_row = (Shorts)((Unsigned)row >> 8);
        const Shorts even = ((Shorts)weights << 8) >> 8, odd = (Shorts)weights >> 8;
        return sums + pairs(even_row, even) + pairs(odd_row, odd);
#endif
    }

private:
    template <class Shorts>
    static BLOOM_INLINE Sums pairs(Shorts a, Shorts b) {
#if defined(__AVX512BW__)
        return (Sums)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && !defined(__AVX512F__)
        return (Sums)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__) && !defined(__AVX__)
        return (Sums)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
        const Ints low_a = ((Ints)a << 16) >> 16, low_b = ((Ints)b << 16) >> 16;
        return low_a * low_b + ((Ints)a >> 16) * ((Ints)b >> 16);
#endif
    }
};

}  // namespace bloom
