// What is done to rows one by one: layer normalisation, and quantization for an int8 product.
#pragma once

#include <cmath>

#include "buffer.h"
#include "vec.h"

namespace bloom {

struct Norm {
    Buffer<float> weight, bias;  // [columns]
};

// to = (from - mean) / sqrt(variance + eps) * weight + bias over `columns`; both passes in fp32. `to` may be `from`.
inline void normalise(const Norm& norm, float eps, int64_t columns, const float* from, float* to) {
    Floats total{};
    for (int64_t i = 0; i < columns; i += WIDTH) total += load_up_to(from + i, columns - i);
    const float mean = sum(total) / static_cast<float>(columns);
    Floats squares{};
    for (int64_t i = 0; i < columns; i += WIDTH) {
        if (columns - i >= WIDTH) {
            const Floats d = load<Floats>(from + i) - mean;
            squares += d * d;
            continue;
        }
        // The lanes past the end must add nothing.
        const Floats means = all(mean);
        const Floats d = load_part(from + i, columns - i) - load_part(reinterpret_cast<const float*>(&means), columns - i);
        squares += d * d;
    }
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(columns) + eps);
    for (int64_t i = 0; i < columns; i += WIDTH) {
        const int64_t lanes = columns - i;
        const Floats d = (load_up_to(from + i, lanes) - mean) * scale;
        const Floats v = d * load_up_to(norm.weight.data() + i, lanes) + load_up_to(norm.bias.data() + i, lanes);
        store_up_to(to + i, v, lanes);
    }
}

// A row as bytes, 128 added, the largest number as 127; returns the scale that undoes it. `columns` is a multiple of 4.
// The scale of a row that is not all finite is NaN, so that what is computed from it is not finite either.
inline float quantize(const float* from, int64_t columns, uint8_t* to) {
    Floats most{}, odd{};
    for (int64_t i = 0; i < columns; i += WIDTH) {
        const Floats v = load_up_to(from + i, columns - i);
        most = larger(absolute(v), most);
        odd += v - v;  // 0 if finite, else NaN
    }
    const float limit = max(most);
    const float inverse = limit > 1e-30f ? 127.0f / limit : 0.0f;
    for (int64_t i = 0; i < columns; i += WIDTH) {
        const Ints q = bits(load_up_to(from + i, columns - i) * inverse + ROUNDER) ^ 0x80;
        const Bytes bytes = __builtin_convertvector(q & 0xff, Bytes);
        if (columns - i >= WIDTH) store(to + i, bytes);
        else std::memcpy(to + i, &bytes, static_cast<size_t>(columns - i));
    }
    return limit / 127.0f + sum(odd);
}

}  // namespace bloom
