// Threads that share a phase's chunks: each starts with its own part and then takes from the others'.
//
// A thread that loses its core to another process delays only the chunk it holds. Between the phases of a step the
// helpers look for work for a moment; with none they sleep, so an idle engine burns no CPU.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace bloom {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
public:
    // `threads` counts the caller. `spin_us`: how long a helper looks for the next phase before it sleeps.
    Pool(int threads, int spin_us) : spin_(spin_us), lanes_(threads) {
        try {
            for (int lane = 1; lane < threads; ++lane) helpers_.emplace_back([this, lane] { help(lane); });
        } catch (...) {
            stop();
            throw;
        }
    }

    ~Pool() { stop(); }

    int threads() const { return static_cast<int>(lanes_.size()); }

    // Calls body(chunk) for 0 <= chunk < chunks, each once, and returns when all are done. Throws bad_alloc if one did.
    template <class Body>
    void run(int64_t chunks, const Body& body) {
        if (chunks <= 1 || lanes_.size() == 1) {
            for (int64_t chunk = 0; chunk < chunks; ++chunk) body(chunk);
            return;
        }
        call_ = [](const void* context, int64_t chunk) { (*static_cast<const Body*>(context))(chunk); };
        context_ = &body;
        done_.store(0, std::memory_order_relaxed);
        const uint64_t phase = phase_.load(std::memory_order_relaxed) + 1;
        const int64_t count = threads();
        for (int64_t lane = 0; lane < count; ++lane) {
            const int64_t first = chunks * lane / count, end = chunks * (lane + 1) / count;
            lanes_[lane].end = end;
            lanes_[lane].ticket.store(phase << 32 | static_cast<uint64_t>(end - first), std::memory_order_release);
        }
        phase_.store(phase);
        if (sleepers_.load() > 0) {
            // Taking the lock waits for a helper that is between its last look and its sleep.
            { std::lock_guard<std::mutex> hold(mutex_); }
            wake_.notify_all();
        }
        work(0);
        const auto patience = std::chrono::steady_clock::now() + spin_;
        while (done_.load(std::memory_order_acquire) < chunks) {
            relax();
            // A helper that still holds a chunk may be waiting for this very core.
            if (std::chrono::steady_clock::now() > patience) std::this_thread::yield();
        }
        if (failed_.exchange(false)) throw std::bad_alloc();
    }

private:
    struct alignas(64) Lane {
        // Phase in the high half, chunks left in the low one: a chunk is taken by counting down, and a ticket of an
        // earlier phase can't be taken, since its low half is 0.
        std::atomic<uint64_t> ticket{0};
        int64_t end = 0;
    };

    void stop() {
        {
            std::lock_guard<std::mutex> hold(mutex_);
            stopping_.store(true);
        }
        wake_.notify_all();
        for (auto& helper : helpers_) helper.join();
    }

    void work(int own) {
        const int count = threads();
        for (int step = 0; step < count; ++step) {
            Lane& lane = lanes_[(own + step) % count];
            uint64_t ticket = lane.ticket.load(std::memory_order_acquire);
            while (ticket & UINT32_MAX) {
                if (!lane.ticket.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
                try {
                    call_(context_, lane.end - static_cast<int64_t>(ticket & UINT32_MAX));
                } catch (...) {
                    failed_.store(true);  // told once all chunks are done: until then the others use what is here
                }
                done_.fetch_add(1, std::memory_order_release);
                ticket = lane.ticket.load(std::memory_order_acquire);
            }
        }
    }

    void help(int own) {
        uint64_t seen = 0;
        while (await(seen)) {
            seen = phase_.load();
            work(own);
        }
    }

    // Returns once there is a phase after `seen`; false when the pool ends.
    bool await(uint64_t seen) {
        const auto patience = std::chrono::steady_clock::now() + spin_;
        do {
            for (int i = 0; i < 32; ++i) {
                if (phase_.load(std::memory_order_acquire) != seen) return true;
                relax();
            }
        } while (std::chrono::steady_clock::now() < patience);
        std::unique_lock<std::mutex> hold(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(hold, [&] { return stopping_.load() || phase_.load() != seen; });
        sleepers_.fetch_sub(1);
        return !stopping_.load();
    }

    const std::chrono::microseconds spin_;
    std::vector<Lane> lanes_;
    alignas(64) std::atomic<uint64_t> phase_{0};
    alignas(64) std::atomic<int64_t> done_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<bool> stopping_{false}, failed_{false};
    // Written between phases only, and read by those who took a chunk.
    void (*call_)(const void*, int64_t) = nullptr;
    const void* context_ = nullptr;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> helpers_;
};

}  // namespace bloom
