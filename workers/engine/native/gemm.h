// rows x packed weights, in panels of COLUMNS outputs: fp32 or int8, with the layer's ending fused in.
//
// Few rows are bound by the memory that the weights come from, many by arithmetic. So a panel is read once, a slice at
// a time: all rows pass over a slice while it is in the nearest cache, and the next slice is fetched meanwhile.
// A row's sums are added in the order of its columns whatever rows are beside it, so neighbours change no bit.
#pragma once

#include <algorithm>

#include "buffer.h"
#include "dot.h"
#include "vec.h"

namespace bloom {

constexpr int COLUMNS = 2 * WIDTH;  // outputs of a panel
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int BLOCK = 12;  // rows whose sums fit the registers
#else
constexpr int BLOCK = 6;
#endif
constexpr int SLICE = 128;      // steps of a slice: 16 KiB of weights at the widest
constexpr int MAX_ROWS = 10 * BLOCK;  // rows that pass together: their sums share the nearest cache with a slice

// A weight matrix [outs, ins] in panels: [outs / COLUMNS][ins / DEPTH][COLUMNS][DEPTH], the last panel filled with 0.
template <class Kind>
struct Packed {
    int64_t outs = 0, ins = 0;
    Buffer<typename Kind::Element> weights;
    Buffer<float> bias;        // [panels * COLUMNS], 0 where the layer has none
    Buffer<float> scale;       // int8: each output's
    Buffer<int32_t> offset;    // int8: 128 times each output's sum, as rows are stored with 128 added

    int64_t panels() const { return (outs + COLUMNS - 1) / COLUMNS; }
    int64_t steps() const { return ins / Kind::DEPTH; }
    const typename Kind::Element* panel(int64_t i) const { return weights.data() + i * steps() * COLUMNS; }
};

// The rows of a product: `stride` is in elements. `scale` is int8's, one per row.
template <class Kind>
struct Rows {
    const typename Kind::Element* data;
    int64_t stride;
    int64_t count;
    const float* scale = nullptr;
};

// What becomes of the sums: plain, through GELU, or added to a residual (which may be `out` itself).
enum class End { plain, gelu, add };

struct Out {
    float* data;
    int64_t stride;
    const float* residual = nullptr;
    int64_t residual_stride = 0;
};

// Adds `steps` steps of M rows to their sums. LINES: cache lines to fetch from `ahead` on per step.
template <class Kind, int M, int LINES>
BLOOM_INLINE void pass(const typename Kind::Element* weights, const char* rows, int64_t stride, int64_t steps,
                       typename Kind::Sum* sums, const char* ahead) {
    using Sums = typename Kind::Sums;
    Sums total[M][2];
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r) {
        total[r][0] = load<Sums>(sums + r * COLUMNS);
        total[r][1] = load<Sums>(sums + r * COLUMNS + WIDTH);
    }
    // Every third row has a pointer of its own: x86 addresses the two after it from there.
    constexpr int BASES = (M + 2) / 3;
    const char* base[BASES];
#pragma GCC unroll 4
    for (int i = 0; i < BASES; ++i) base[i] = rows + 3 * i * stride;
    for (int64_t step = 0; step < steps; ++step) {
        const Sums first = load<Sums>(weights), second = load<Sums>(weights + WIDTH);
        weights += COLUMNS;
#pragma GCC unroll 2
        for (int line = 0; line < LINES; ++line) prefetch(ahead + line * LINE);
        ahead += LINES * LINE;
#pragma GCC unroll 12
        for (int r = 0; r < M; ++r) {
            const Sums x = Kind::wide(base[r / 3] + (r % 3) * stride);
            total[r][0] = Kind::step(total[r][0], x, first);
            total[r][1] = Kind::step(total[r][1], x, second);
        }
#pragma GCC unroll 4
        for (int i = 0; i < BASES; ++i) base[i] += sizeof(typename Kind::Element);
    }
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r) {
        store(sums + r * COLUMNS, total[r][0]);
        store(sums + r * COLUMNS + WIDTH, total[r][1]);
    }
}

template <class Kind, int LINES>
void pass_rows(int64_t count, const typename Kind::Element* weights, const char* rows, int64_t stride, int64_t steps,
               typename Kind::Sum* sums, const char* ahead) {
    switch (count) {
#define BLOOM_CASE(M) \
    case M: return pass<Kind, M, LINES>(weights, rows, stride, steps, sums, ahead);
        BLOOM_CASE(1) BLOOM_CASE(2) BLOOM_CASE(3) BLOOM_CASE(4) BLOOM_CASE(5) BLOOM_CASE(6)
#if defined(__AVX512F__) || defined(__aarch64__)
        BLOOM_CASE(7) BLOOM_CASE(8) BLOOM_CASE(9) BLOOM_CASE(10) BLOOM_CASE(11) BLOOM_CASE(12)
#endif
#undef BLOOM_CASE
    }
}

// The sums of at most MAX_ROWS rows with one panel, into sums [count, COLUMNS].
template <class Kind>
void sum_panel(const Packed<Kind>& w, int64_t panel, const Rows<Kind>& x, int64_t first, int64_t count,
               typename Kind::Sum* sums) {
    constexpr int64_t SIZE = sizeof(typename Kind::Element);
    std::memset(static_cast<void*>(sums), 0, static_cast<size_t>(count * COLUMNS * SIZE));
    const int64_t blocks = (count + BLOCK - 1) / BLOCK;
    for (int64_t step = 0; step < w.steps(); step += SLICE) {
        const int64_t steps = std::min<int64_t>(SLICE, w.steps() - step);
        const auto* slice = w.panel(panel) + step * COLUMNS;
        // Panels follow each other, and so do a thread's chunks: past the last slice comes the next panel's first.
        const char* ahead = reinterpret_cast<const char*>(slice + steps * COLUMNS);
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t row = count * block / blocks, end = count * (block + 1) / blocks;
            const char* rows = reinterpret_cast<const char*>(x.data + (first + row) * x.stride + step);
            auto* total = sums + row * COLUMNS;
            // One pass fetches the whole of the next slice; two fetch half each.
            if (blocks == 1)
                pass_rows<Kind, COLUMNS * SIZE / LINE>(end - row, slice, rows, x.stride * SIZE, steps, total, ahead);
            else if (block < 2)
                pass_rows<Kind, (COLUMNS * SIZE + LINE) / (2 * LINE)>(end - row, slice, rows, x.stride * SIZE, steps,
                                                                     total, ahead + block * steps * COLUMNS * SIZE / 2);
            else
                pass_rows<Kind, 0>(end - row, slice, rows, x.stride * SIZE, steps, total, ahead);
        }
    }
}

BLOOM_INLINE Floats value(const Packed<F32>&, const Rows<F32>&, const float* sums, int64_t, int64_t) {
    return load<Floats>(sums);
}

BLOOM_INLINE Floats value(const Packed<I8>& w, const Rows<I8>& x, const int32_t* sums, int64_t row, int64_t column) {
    const Ints exact = load<Ints>(sums) - load<Ints>(w.offset.data() + column);
    return __builtin_convertvector(exact, Floats) * (load<Floats>(w.scale.data() + column) * x.scale[row]);
}

// All rows of `x` with one panel: bias, ending, and out.
template <End end, class Kind>
void multiply_panel(const Packed<Kind>& w, int64_t panel, const Rows<Kind>& x, const Out& out) {
    alignas(LINE) typename Kind::Sum sums[MAX_ROWS * COLUMNS];
    const int64_t column = panel * COLUMNS;
    for (int64_t first = 0; first < x.count; first += MAX_ROWS) {
        const int64_t count = std::min<int64_t>(MAX_ROWS, x.count - first);
        sum_panel(w, panel, x, first, count, sums);
        for (int64_t r = 0; r < count; ++r) {
            const int64_t row = first + r;
            for (int64_t c = 0; c < COLUMNS && column + c < w.outs; c += WIDTH) {
                const int64_t lanes = w.outs - column - c;
                Floats v = value(w, x, sums + r * COLUMNS + c, row, column + c);
                v = v + load<Floats>(w.bias.data() + column + c);
                if (end == End::gelu) v = gelu(v);
                if (end == End::add)
                    v = v + load_up_to(out.residual + row * out.residual_stride + column + c, lanes);
                store_up_to(out.data + row * out.stride + column + c, v, lanes);
            }
        }
    }
}

}  // namespace bloom
