// Attention with ALiBi over contiguous blocks of the KV cache: decode rows and prompt chunks alike.
//
// softmax(q k / sqrt(head_dim) + slope (key - query)) v in fp32. A query's keys are added in the order of their
// positions, whatever queries are computed beside it.
// Source: ALiBi, Press et al. 2022, section 3.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "buffer.h"
#include "pool.h"
#include "vec.h"

namespace bloom {

constexpr int QUERIES = 4;     // queries that share a read of the values
constexpr int64_t CHUNK_COST = 1 << 15;  // of a chunk: multiplications, some microseconds' worth

// Rows `row` and on belong to a block of `size` tokens at `offset`; the first stands at position `start`.
struct Span {
    int64_t offset, size, start, count, row;
};

// Some heads of some queries of a span. `stores`: it stores the span's keys and values for these heads, too.
struct Item {
    int32_t span, head, heads;
    bool stores;
    int64_t first, count;
};

struct Heads {
    int64_t heads, dim;
    const float* slopes;  // [heads]
};

// Keys and values of a layer: [2, tokens * heads, dim], keys first; a block is [heads, size, dim] at rows offset * heads.
struct Cache {
    float* keys;
    float* values;

    static int64_t place(const Span& span, const Heads& shape, int64_t head, int64_t position) {
        return (span.offset * shape.heads + head * span.size + position) * shape.dim;
    }
};

// qkv: [rows, 3, heads, dim]; out: [rows, heads, dim]. Strides in floats.
struct Queries {
    const float* qkv;
    int64_t stride;
    float* out;
    int64_t out_stride;
};

inline void store_kv(const Cache& cache, const Heads& shape, const Span& span, const Queries& io, int64_t head,
                     int64_t first, int64_t count) {
    const int64_t hidden = shape.heads * shape.dim;
    const auto bytes = static_cast<size_t>(shape.dim) * sizeof(float);
    for (int64_t i = first; i < first + count; ++i) {
        const float* key = io.qkv + (span.row + i) * io.stride + hidden + head * shape.dim;
        const int64_t to = Cache::place(span, shape, head, span.start + i);
        std::memcpy(cache.keys + to, key, bytes);
        std::memcpy(cache.values + to, key + hidden, bytes);
    }
}

// The products of a query with WIDTH keys that lie one after the other. V: vectors of a head, 0 for any other dim.
template <int V>
BLOOM_INLINE Floats products(const float* query, const float* keys, int64_t dim, int64_t count) {
    Floats product[WIDTH];
    if (V && count == WIDTH) {
        Floats q[V ? V : 1];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) q[v] = load<Floats>(query + v * WIDTH);
#pragma GCC unroll 16
        for (int i = 0; i < WIDTH; ++i) {
            // From 0 on, as below: the compiler must have one way only to fuse the sum, or the paths differ in a bit.
            product[i] = Floats{};
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) product[i] += q[v] * load<Floats>(keys + (i * V + v) * WIDTH);
        }
        return sums_of(product);
    }
    for (int i = 0; i < WIDTH; ++i) {
        product[i] = Floats{};
        for (int64_t d = 0; i < count && d < dim; d += WIDTH)
            product[i] += load_up_to(query + d, dim - d) * load_up_to(keys + i * dim + d, dim - d);
    }
    return sums_of(product);
}

// scores[i] = query key_i scale + slope (i - position) for the keys up to the position; returns the largest.
// `scores` has room for a whole vector at the end. Keys up to `size` may be read, and count for nothing.
template <int V>
float score(const float* query, const float* keys, const Heads& shape, int64_t size, int64_t position, float slope,
            float* scores) {
    const float root = std::sqrt(static_cast<float>(shape.dim)), scale = 1.0f / root, steepness = slope * root;
    const Floats none = all(-std::numeric_limits<float>::infinity());
    Floats most = none;
    Ints lane;
    for (int i = 0; i < WIDTH; ++i) lane[i] = i;
    const int64_t group = WIDTH * shape.dim;
    for (int64_t key = 0; key <= position; key += WIDTH, keys += group) {
        const Floats product = products<V>(query, keys, shape.dim, std::min<int64_t>(WIDTH, size - key));
        const Ints at = lane + static_cast<int32_t>(key - position);
        // One product and one sum at a time, for the same reason as above.
        Floats v = (product + __builtin_convertvector(at, Floats) * steepness) * scale;
        v = at > 0 ? none : v;  // keys after the query weigh nothing
        most = larger(most, v);
        store(scores + key, v);
    }
    return max(most);
}

inline float score_head(const float* query, const float* keys, const Heads& shape, int64_t size, int64_t position,
                        float slope, float* scores) {
    const auto run = shape.dim == 8 * WIDTH   ? score<8>
                     : shape.dim == 4 * WIDTH ? score<4>
                     : shape.dim == 2 * WIDTH ? score<2>
                     : shape.dim == WIDTH     ? score<1>
                                              : score<0>;
    return run(query, keys, shape, size, position, slope, scores);
}

// scores[i] = e^(scores[i] - most); returns 1 / their sum.
inline float weigh(float* scores, int64_t length, float most) {
    Floats total{};
    for (int64_t i = 0; i < length; i += WIDTH) {
        const Floats v = exp(load<Floats>(scores + i) - most);
        total += v;
        store(scores + i, v);
    }
    return 1.0f / sum(total);
}

// The values weighed, for COUNT queries whose first has `length` keys and each next one more; V vectors of the head.
template <int COUNT, int V>
BLOOM_INLINE void mix(const float* values, int64_t dim, int64_t lanes, const float* weights, int64_t stride,
                      int64_t length, const float* scale, float* out, int64_t out_stride) {
    Floats total[COUNT][V];
    for (int q = 0; q < COUNT; ++q)
        for (int v = 0; v < V; ++v) total[q][v] = Floats{};
    const int64_t end = lanes - (V - 1) * WIDTH;
    const auto add = [&](int64_t key, int from) {
        Floats value[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            value[v] = v + 1 < V ? load<Floats>(values + key * dim + v * WIDTH)
                                 : load_up_to(values + key * dim + v * WIDTH, end);
#pragma GCC unroll 4
        for (int q = 0; q < COUNT; ++q)
            if (q >= from)
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) total[q][v] += value[v] * weights[q * stride + key];
    };
    for (int64_t key = 0; key < length; ++key) add(key, 0);
    for (int more = 1; more < COUNT; ++more) add(length + more - 1, more);
    for (int q = 0; q < COUNT; ++q)
        for (int v = 0; v < V; ++v)
            store_up_to(out + q * out_stride + v * WIDTH, total[q][v] * scale[q], v + 1 < V ? WIDTH : end);
}

template <int COUNT>
void mix_head(const float* values, int64_t dim, const float* weights, int64_t stride, int64_t length,
              const float* scale, float* out, int64_t out_stride) {
    constexpr int64_t MOST = 4 * WIDTH;
    for (int64_t d = 0; d < dim; d += MOST) {
        const int64_t lanes = std::min<int64_t>(MOST, dim - d);
        switch ((lanes + WIDTH - 1) / WIDTH) {
#define BLOOM_CASE(V)                                                                                                 \
    case V:                                                                                                           \
        mix<COUNT, V>(values + d, dim, lanes, weights, stride, length, scale, out + d, out_stride);                   \
        break;
            BLOOM_CASE(1) BLOOM_CASE(2) BLOOM_CASE(3) BLOOM_CASE(4)
#undef BLOOM_CASE
        }
    }
}

// Attends `count` <= QUERIES queries of one head, from the span's `first` on. scratch: [QUERIES, longest + WIDTH].
inline void attend(const Cache& cache, const Heads& shape, const Span& span, const Queries& io, int64_t head,
                   int64_t first, int64_t count, float* scratch) {
    const int64_t position = span.start + first, stride = round_up(position + count, WIDTH);
    const int64_t from = Cache::place(span, shape, head, 0);
    float inverse[QUERIES];
    for (int64_t q = 0; q < count; ++q) {
        const float* query = io.qkv + (span.row + first + q) * io.stride + head * shape.dim;
        float* scores = scratch + q * stride;
        const float most = score_head(query, cache.keys + from, shape, span.size, position + q, shape.slopes[head], scores);
        inverse[q] = weigh(scores, position + q + 1, most);
    }
    float* out = io.out + (span.row + first) * io.out_stride + head * shape.dim;
    switch (count) {
#define BLOOM_CASE(COUNT)                                                                                             \
    case COUNT:                                                                                                       \
        return mix_head<COUNT>(cache.values + from, shape.dim, scratch, stride, position + 1, inverse, out,          \
                               io.out_stride);
        BLOOM_CASE(1) BLOOM_CASE(2) BLOOM_CASE(3) BLOOM_CASE(4)
#undef BLOOM_CASE
    }
}

// A step's attention cut into items of about CHUNK_COST, the costliest first.
class Attention {
public:
    void plan(std::vector<Span> spans, const Heads& shape) {
        spans_ = std::move(spans);
        items_.clear();
        longest_ = 0;
        wide_ = false;
        for (size_t i = 0; i < spans_.size(); ++i) {
            const Span& span = spans_[i];
            longest_ = std::max(longest_, span.start + span.count);
            // Queries of one item share keys in the nearest cache; 8 groups of them keep a long prompt in many pieces.
            const int64_t queries = std::min<int64_t>(span.count, 8 * QUERIES);
            const bool stores = span.count == queries;
            wide_ |= !stores;
            for (int64_t first = 0; first < span.count; first += queries) {
                const int64_t count = std::min(queries, span.count - first);
                const int64_t cost = (span.start + first + count) * count * 2 * shape.dim;
                const int64_t heads = std::clamp<int64_t>(CHUNK_COST / cost, 1, shape.heads);
                for (int64_t head = 0; head < shape.heads; head += heads)
                    items_.push_back({static_cast<int32_t>(i), static_cast<int32_t>(head),
                                      static_cast<int32_t>(std::min(heads, shape.heads - head)), stores, first, count});
            }
        }
        pack(shape);
    }

    // Stores the step's keys and values of a layer and attends all its rows.
    void run(Pool& pool, const Cache& cache, const Heads& shape, const Queries& io) {
        if (wide_)
            pool.run(static_cast<int64_t>(spans_.size()), [&](int64_t i) {
                for (int64_t head = 0; head < shape.heads; ++head)
                    store_kv(cache, shape, spans_[i], io, head, 0, spans_[i].count);
            });
        const int64_t room = QUERIES * round_up(longest_ + WIDTH, WIDTH);
        pool.run(static_cast<int64_t>(chunks_.size()) - 1, [&](int64_t chunk) {
            thread_local Buffer<float> scratch;
            scratch.reserve(room);
            for (int64_t i = chunks_[chunk]; i < chunks_[chunk + 1]; ++i) compute(items_[i], cache, shape, io, scratch);
        });
    }

private:
    // Short items share a chunk, so that claiming costs little beside computing.
    void pack(const Heads& shape) {
        chunks_.assign(1, 0);
        int64_t cost = 0;
        for (size_t i = 0; i < items_.size(); ++i) {
            const Item& item = items_[i];
            cost += (spans_[item.span].start + item.first + item.count) * item.count * item.heads * 2 * shape.dim;
            if (cost >= CHUNK_COST || i + 1 == items_.size()) {
                chunks_.push_back(static_cast<int64_t>(i) + 1);
                cost = 0;
            }
        }
    }

    void compute(const Item& item, const Cache& cache, const Heads& shape, const Queries& io, Buffer<float>& scratch) {
        const Span& span = spans_[item.span];
        for (int64_t head = item.head; head < item.head + item.heads; ++head) {
            if (item.stores) store_kv(cache, shape, span, io, head, 0, span.count);
            for (int64_t q = 0; q < item.count; q += QUERIES)
                attend(cache, shape, span, io, head, item.first + q, std::min<int64_t>(QUERIES, item.count - q),
                       scratch.data());
        }
    }

    std::vector<Span> spans_;
    std::vector<Item> items_;
    std::vector<int64_t> chunks_;  // chunk i computes items chunks_[i] .. chunks_[i + 1]
    int64_t longest_ = 0;
    bool wide_ = false;  // some span is cut into several items
};

}  // namespace bloom
