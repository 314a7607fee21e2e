// A run of Bloom blocks as one call: embedding, blocks and head over flat rows, decode rows and prompt chunks mixed.
//
// The C interface at the end is all that Python sees; library.py declares it again.
#include <memory>
#include <vector>

#include "attention.h"
#include "gemm.h"
#include "pack.h"
#include "pool.h"
#include "rows.h"

namespace bloom {

// The shape of a stage. Python declares the same structure.
struct Shape {
    int64_t vocab, hidden, layers, heads;
    int32_t first, last, residual_post_norm, threads, spin_us;
    float norm_eps;
};

enum Linear : int { QKV, DENSE, UP, DOWN, LINEARS };
enum BlockNorm : int { ATTENTION_NORM, MLP_NORM, BLOCK_NORMS };

constexpr int64_t CHUNK_FLOATS = 8192;  // of a chunk where each row is worked on alone: some microseconds' worth

class Stage {
public:
    explicit Stage(const Shape& shape)
        : shape_(shape), pool_(shape.threads, shape.spin_us), head_dim_(shape.hidden / shape.heads) {}
    virtual ~Stage() = default;

    virtual void set_linear(int64_t layer, int which, const float* weight, const float* bias) = 0;
    virtual void set_head(const float* weight) = 0;
    virtual void forward(const void* source, int64_t rows, std::vector<Span> spans, const int64_t* sampled,
                         int64_t sampled_rows, float* const* cache, int64_t cache_tokens, float* out) = 0;

    void set_norm(Norm& norm, const float* weight, const float* bias) {
        norm.weight.reserve(shape_.hidden);
        norm.bias.reserve(shape_.hidden);
        std::memcpy(norm.weight.data(), weight, static_cast<size_t>(shape_.hidden) * sizeof(float));
        std::memcpy(norm.bias.data(), bias, static_cast<size_t>(shape_.hidden) * sizeof(float));
    }

    Shape shape_;
    Pool pool_;
    int64_t head_dim_;
    const float* embedding_ = nullptr;  // [vocab, hidden], the caller's
    Norm embedding_norm_, final_norm_;
    std::vector<Norm> norms_ = std::vector<Norm>(static_cast<size_t>(shape_.layers * BLOCK_NORMS));
    std::vector<float> slopes_;
};

template <class Kind>
class TypedStage final : public Stage {
public:
    explicit TypedStage(const Shape& shape) : Stage(shape), linears_(static_cast<size_t>(shape.layers * LINEARS)) {}

    void set_linear(int64_t layer, int which, const float* weight, const float* bias) override {
        const int64_t h = shape_.hidden;
        const int64_t outs[] = {3 * h, h, 4 * h, h}, ins[] = {h, h, h, 4 * h};
        pack(linears_[layer * LINEARS + which], pool_, weight, bias, outs[which], ins[which]);
    }

    void set_head(const float* weight) override {
        pack(head_, pool_, weight, nullptr, shape_.vocab, shape_.hidden);
    }

    void forward(const void* source, int64_t rows, std::vector<Span> spans, const int64_t* sampled,
                 int64_t sampled_rows, float* const* cache, int64_t cache_tokens, float* out) override {
        reserve(rows);
        const int64_t h = shape_.hidden;
        const Heads heads{shape_.heads, head_dim_, slopes_.data()};
        attention_.plan(std::move(spans), heads);
        begin(source, rows);
        for (int64_t layer = 0; layer < shape_.layers; ++layer) {
            const Packed<Kind>* linear = &linears_[layer * LINEARS];
            const Norm* norm = &norms_[layer * BLOCK_NORMS];
            const float* residual = shape_.residual_post_norm ? normed_.data() : x_.data();
            normalise_rows(norm[ATTENTION_NORM], rows, nullptr);
            multiply<End::plain>(linear[QKV], normed_.data(), rows, {qkv_.data(), row_stride(3 * h)});
            float* keys = cache[layer];
            attention_.run(pool_, {keys, keys + cache_tokens * h}, heads,
                           {qkv_.data(), row_stride(3 * h), context_.data(), row_stride(h)});
            quantize_rows(context_.data(), row_stride(h), h, rows);
            const Out stream{x_.data(), row_stride(h), residual, row_stride(h)};
            multiply<End::add>(linear[DENSE], context_.data(), rows, stream);
            normalise_rows(norm[MLP_NORM], rows, nullptr);
            multiply<End::gelu>(linear[UP], normed_.data(), rows, {wide_.data(), row_stride(4 * h)});
            quantize_rows(wide_.data(), row_stride(4 * h), 4 * h, rows);
            multiply<End::add>(linear[DOWN], wide_.data(), rows, stream);
        }
        finish(rows, sampled, sampled_rows, out);
    }

private:
    static constexpr bool QUANTIZED = Kind::DEPTH > 1;

    void reserve(int64_t rows) {
        const int64_t h = shape_.hidden;
        x_.reserve(rows * row_stride(h));
        normed_.reserve(rows * row_stride(h));
        context_.reserve(rows * row_stride(h));
        qkv_.reserve(rows * row_stride(3 * h));
        wide_.reserve(rows * row_stride(4 * h));
        if (QUANTIZED) {
            bytes_.reserve(rows * row_stride(4 * h));
            scales_.reserve(rows);
        }
    }

    // Calls body(row) for all rows, some at a time.
    template <class Body>
    void each_row(int64_t rows, int64_t columns, const Body& body) {
        const int64_t size = std::max<int64_t>(1, CHUNK_FLOATS / columns);
        pool_.run((rows + size - 1) / size, [&](int64_t chunk) {
            for (int64_t row = chunk * size; row < std::min(rows, (chunk + 1) * size); ++row) body(row);
        });
    }

    // The residual stream's first values: token ids embedded and normalised, or the rows of the stage before.
    void begin(const void* source, int64_t rows) {
        const int64_t h = shape_.hidden, stride = row_stride(h);
        each_row(rows, h, [&](int64_t row) {
            float* to = x_.data() + row * stride;
            if (shape_.first)
                bloom::normalise(embedding_norm_, shape_.norm_eps, h,
                                 embedding_ + static_cast<const int64_t*>(source)[row] * h, to);
            else
                std::memcpy(to, static_cast<const float*>(source) + row * h, static_cast<size_t>(h) * sizeof(float));
        });
    }

    // normed = norm(x), and its bytes if quantized. `picked`: which rows of x, if not the first ones in order.
    void normalise_rows(const Norm& norm, int64_t rows, const int64_t* picked) {
        const int64_t h = shape_.hidden, stride = row_stride(h);
        each_row(rows, h, [&](int64_t row) {
            float* to = normed_.data() + row * stride;
            bloom::normalise(norm, shape_.norm_eps, h, x_.data() + (picked ? picked[row] : row) * stride, to);
            if (QUANTIZED) quantize_row(to, h, stride, row);
        });
    }

    void quantize_rows(const float* from, int64_t stride, int64_t columns, int64_t rows) {
        if (!QUANTIZED) return;
        each_row(rows, columns, [&](int64_t row) { quantize_row(from + row * stride, columns, stride, row); });
    }

    void quantize_row(const float* from, int64_t columns, int64_t stride, int64_t row) {
        scales_.data()[row] = quantize(from, columns, bytes_.data() + row * stride);
    }

    template <End end>
    void multiply(const Packed<Kind>& w, const float* x, int64_t rows, const Out& out) {
        const int64_t stride = row_stride(w.ins);
        Rows<Kind> in;
        if constexpr (QUANTIZED)
            in = {reinterpret_cast<const int32_t*>(bytes_.data()), stride / 4, rows, scales_.data()};
        else
            in = {x, stride, rows};
        pool_.run(rows ? w.panels() : 0, [&](int64_t panel) { multiply_panel<end>(w, panel, in, out); });
    }

    // Logits of the sampled rows, or the residual stream for the next stage.
    void finish(int64_t rows, const int64_t* sampled, int64_t sampled_rows, float* out) {
        const int64_t h = shape_.hidden;
        if (shape_.last) {
            normalise_rows(final_norm_, sampled_rows, sampled);
            multiply<End::plain>(head_, normed_.data(), sampled_rows, {out, shape_.vocab});
            return;
        }
        for (int64_t row = 0; row < rows; ++row)
            std::memcpy(out + row * h, x_.data() + row * row_stride(h), static_cast<size_t>(h) * sizeof(float));
    }

    std::vector<Packed<Kind>> linears_;
    Packed<Kind> head_;
    Attention attention_;
    // Scratch, one row after the other, each row_stride() wide.
    Buffer<float> x_, normed_, context_, qkv_, wide_;
    Buffer<uint8_t> bytes_;
    Buffer<float> scales_;
};

}  // namespace bloom

using bloom::Stage;

#pragma GCC visibility push(default)
extern "C" {

// Changes with this interface; library.py expects the same number.
int32_t bloom_version() { return 1; }

int32_t bloom_width() { return bloom::WIDTH; }

// Null if memory or threads can't be had. slopes: [heads].
Stage* bloom_create(const bloom::Shape* shape, const float* slopes, int32_t quantized) {
    try {
        std::unique_ptr<Stage> stage;
        if (quantized) stage = std::make_unique<bloom::TypedStage<bloom::I8>>(*shape);
        else stage = std::make_unique<bloom::TypedStage<bloom::F32>>(*shape);
        stage->slopes_.assign(slopes, slopes + shape->heads);
        return stage.release();
    } catch (const std::exception&) {
        return nullptr;
    }
}

void bloom_destroy(Stage* stage) { delete stage; }

// Keeps the pointer: the table must outlive the stage.
void bloom_set_embedding(Stage* stage, const float* table) { stage->embedding_ = table; }

// which: 0 the embedding's, 1 the final one, 2 + 2 layer + (0 before attention, 1 before the MLP) a block's.
int32_t bloom_set_norm(Stage* stage, int64_t which, const float* weight, const float* bias) {
    try {
        auto& norm = which == 0 ? stage->embedding_norm_ : which == 1 ? stage->final_norm_ : stage->norms_[which - 2];
        stage->set_norm(norm, weight, bias);
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

// which: 0 QKV with its outputs as [3, heads, head_dim], 1 dense, 2 up, 3 down. Copies what it needs.
int32_t bloom_set_linear(Stage* stage, int64_t layer, int32_t which, const float* weight, const float* bias) {
    try {
        stage->set_linear(layer, which, weight, bias);
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

int32_t bloom_set_head(Stage* stage, const float* weight) {
    try {
        stage->set_head(weight);
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

// One step. source: ids [rows] int64 in the first stage, else fp32 [rows, hidden]; spans: [n, 4] of block offset, block
// size, start and count; cache: a pointer per layer; out: [sampled_rows, vocab] in the last stage, else [rows, hidden].
// Returns 0; 1 without memory; 2 if a span, an id or a sampled row lies outside of what there is.
int32_t bloom_forward(Stage* stage, const void* source, int64_t rows, const int64_t* spans, int64_t n,
                      const int64_t* sampled, int64_t sampled_rows, float* const* cache, int64_t cache_tokens,
                      float* out) {
    try {
        std::vector<bloom::Span> cut;
        int64_t row = 0;
        for (int64_t i = 0; i < n; ++i) {
            const int64_t *s = spans + 4 * i, offset = s[0], size = s[1], start = s[2], count = s[3];
            if (offset < 0 || start < 0 || count < 1 || start + count > size) return 2;
            if (stage->shape_.layers && offset + size > cache_tokens) return 2;
            cut.push_back({offset, size, start, count, row});
            row += count;
        }
        if (row != rows || sampled_rows > rows) return 2;
        for (int64_t i = 0; stage->shape_.first && i < rows; ++i) {
            const int64_t id = static_cast<const int64_t*>(source)[i];
            if (id < 0 || id >= stage->shape_.vocab) return 2;
        }
        for (int64_t i = 0; i < sampled_rows; ++i)
            if (sampled[i] < 0 || sampled[i] >= rows) return 2;
        stage->forward(source, rows, std::move(cut), sampled, sampled_rows, cache, cache_tokens, out);
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}
}
#pragma GCC visibility pop
