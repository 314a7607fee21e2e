// Memory aligned to a cache line, owned; never copied and never shrunk.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "vec.h"

namespace bloom {

template <class T>
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(int64_t count) { reserve(count); }
    Buffer(Buffer&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(count_, other.count_);
        return *this;
    }
    ~Buffer() { std::free(data_); }

    // Room for `count` elements, zero when new; what the buffer held is lost if it grows.
    void reserve(int64_t count) {
        if (count <= count_) return;
        std::free(data_);
        count_ = 0;
        const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + LINE - 1) / LINE * LINE;
        data_ = static_cast<T*>(std::aligned_alloc(LINE, static_cast<size_t>(bytes)));
        if (!data_) throw std::bad_alloc();
        std::memset(static_cast<void*>(data_), 0, static_cast<size_t>(bytes));
        count_ = count;
    }

    T* data() { return data_; }
    const T* data() const { return data_; }

private:
    T* data_ = nullptr;
    int64_t count_ = 0;
};

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Floats per row of an activation: room for a whole panel, and a line more, so that the rows of a block do not compete
// for one set of the cache.
inline int64_t row_stride(int64_t columns) { return round_up(columns, 64) + LINE / 4; }

}  // namespace bloom
