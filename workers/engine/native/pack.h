// Weights into panels, once, at load: as they are, or quantized to int8 with one scale per output.
#pragma once

#include <cmath>
#include <limits>

#include "gemm.h"
#include "pool.h"

namespace bloom {

template <class Kind>
Packed<Kind> empty_pack(int64_t outs, int64_t ins, const float* bias) {
    Packed<Kind> w;
    w.outs = outs;
    w.ins = ins;
    const int64_t padded = w.panels() * COLUMNS;
    // A slice more than the weights: the last panel, too, fetches what would come next.
    w.weights.reserve(padded * w.steps() + SLICE * COLUMNS);
    w.bias.reserve(padded);
    if (bias) std::memcpy(w.bias.data(), bias, static_cast<size_t>(outs) * sizeof(float));
    return w;
}

// weight: [outs, ins] by rows; bias: [outs] or null.
inline void pack(Packed<F32>& w, Pool& pool, const float* weight, const float* bias, int64_t outs, int64_t ins) {
    w = empty_pack<F32>(outs, ins, bias);
    pool.run(w.panels(), [&](int64_t panel) {
        float* to = w.weights.data() + panel * ins * COLUMNS;
        const int64_t count = std::min<int64_t>(COLUMNS, outs - panel * COLUMNS);
        const float* from = weight + panel * COLUMNS * ins;
        for (int64_t k = 0; k < ins; ++k)
            for (int64_t c = 0; c < count; ++c) to[k * COLUMNS + c] = from[c * ins + k];
    });
}

// As above, quantized: symmetric, an output's largest weight becomes 127.
inline void pack(Packed<I8>& w, Pool& pool, const float* weight, const float* bias, int64_t outs, int64_t ins) {
    w = empty_pack<I8>(outs, ins, bias);
    w.scale.reserve(w.panels() * COLUMNS);
    w.offset.reserve(w.panels() * COLUMNS);
    pool.run(outs, [&](int64_t out) {
        const float* from = weight + out * ins;
        float most = 0;
        for (int64_t k = 0; k < ins; ++k) most = std::max(most, std::fabs(from[k]));
        const float inverse = most > 1e-30f ? 127.0f / most : 0.0f;
        const int64_t panel = out / COLUMNS, column = out % COLUMNS;
        int32_t total = 0;
        auto* to = reinterpret_cast<int8_t*>(w.weights.data() + panel * w.steps() * COLUMNS);
        for (int64_t k = 0; k < ins; ++k) {
            const auto q = static_cast<int8_t>(std::lrintf(from[k] * inverse));
            to[(k / 4 * COLUMNS + column) * 4 + k % 4] = q;
            total += q;
        }
        w.scale.data()[out] = most / 127.0f;
        w.offset.data()[out] = 128 * total;
    });
}

}  // namespace bloom
