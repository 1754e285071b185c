// Memory that a call needs: an arena block a thread with slack on both sides, scratch a thread, counters of tasks.
#ifndef FXQ_ARENA_H
#define FXQ_ARENA_H

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "kernel.h"

namespace fxq {

class Arena {
   public:
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena();
    bool allocate(int64_t arena_bytes);
    uint8_t* block() const { return block_; }
    int64_t bytes() const { return mapped_; }

   private:
    void* base_ = nullptr;
    int64_t mapped_ = 0;
    uint8_t* block_ = nullptr;
};

// A number on a cache line of its own.
struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
};

// What one call uses; kept for the next call. Each thread makes its own part when it first needs it.
class Memory {
   public:
    Memory(int64_t arena_bytes, int64_t scratch_bytes) : arena_bytes_(arena_bytes), scratch_bytes_(scratch_bytes) {}

    // Room for the parts of `threads` threads, `counters` counters, and the times of `operations` operations for each
    // thread, all zero. Only while no other thread uses it.
    void prepare(int threads, int64_t counters, int64_t operations);
    double* seconds(int thread) { return seconds_.data() + thread * operations_; }
    // Adds each operation's time, the mean of the threads that did something.
    void add_seconds(double* sums) const;
    // nullptr without memory.
    uint8_t* block(int thread);
    uint8_t* scratch(int thread);
    Counter* counters() const { return counters_.get(); }
    int64_t bytes() const { return bytes_.load(); }

   private:
    struct Part {
        Arena arena;
        Buffer scratch;
    };
    const int64_t arena_bytes_, scratch_bytes_;
    std::vector<std::unique_ptr<Part>> parts_;
    std::unique_ptr<Counter[]> counters_;
    int64_t counter_room_ = 0, operations_ = 0;
    std::vector<double> seconds_;  // [thread][operation]
    std::atomic<int64_t> bytes_{0};
};

// Memory of calls that have ended, for later ones: at most a few, so that a burst of callers does not hold it for ever.
class Store {
   public:
    Store() = default;
    std::unique_ptr<Memory> take(int64_t arena_bytes, int64_t scratch_bytes);
    void give(std::unique_ptr<Memory> memory);
    // Of the memory that waits for a call.
    int64_t bytes() const;

   private:
    static constexpr size_t MOST = 4;
    mutable std::mutex mutex_;
    std::vector<std::unique_ptr<Memory>> free_;
};

}  // namespace fxq
#endif
