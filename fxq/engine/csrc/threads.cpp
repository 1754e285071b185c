#include "threads.h"

#include <chrono>
#include <new>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fxq {
namespace {

constexpr int MOST_WORKERS = 255;
constexpr auto AWAKE = std::chrono::microseconds(100);  // how long a worker without work spins

std::atomic<Pool*> current{nullptr};
std::mutex making;

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

// In a forked child the workers do not exist: the pool is left behind (stacks and locks are those of the parent).
void forget() {
    current.store(nullptr);
    new (&making) std::mutex;
}

}  // namespace

void Spin::wait() {
    relax();
    if (++count_ < 4000) return;
    count_ = 0;
    std::this_thread::yield();
}

Pool& Pool::instance() {
    if (Pool* pool = current.load()) return *pool;
    const std::lock_guard<std::mutex> lock(making);
    if (!current.load()) {
#if defined(__unix__) || defined(__APPLE__)
        static const int registered = pthread_atfork(nullptr, nullptr, forget);
        (void)registered;
#endif
        current.store(new Pool);
    }
    return *current.load();
}

void Pool::grow(int threads) {
    while (workers_ < threads - 1 && workers_ < MOST_WORKERS) {
        try {
            std::thread([this, thread = workers_ + 1] { serve(thread); }).detach();
        } catch (const std::system_error&) {
            return;  // the system gives no more threads: fewer do the work
        }
        ++workers_;
    }
}

bool Pool::run(Work* work, int threads) {
    if (taken_.exchange(true)) return false;
    grow(threads);
    work_ = work;
    threads_ = threads;
    inside_.fetch_and(~CLOSED);
    news_.fetch_add(1);
    if (asleep_.load() > 0) {
        { const std::lock_guard<std::mutex> lock(mutex_); }
        wake_.notify_all();
    }
    work->take_part(0);
    inside_.fetch_or(CLOSED);
    Spin spin;
    while (inside_.load() & (CLOSED - 1)) spin.wait();
    taken_.store(false);
    return true;
}

uint64_t Pool::wait_for_news(uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + AWAKE;
    do {
        for (int i = 0; i < 32; ++i) {
            if (news_.load(std::memory_order_acquire) != seen) return news_.load();
            relax();
        }
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.fetch_add(1);
    wake_.wait(lock, [&] { return news_.load() != seen; });
    asleep_.fetch_sub(1);
    return news_.load();
}

void Pool::serve(int thread) {
    uint64_t seen = 0;
    for (;;) {
        seen = wait_for_news(seen);
        // Whoever comes in before the job is closed may use it until he leaves: the caller waits for that.
        if (!(inside_.fetch_add(1) & CLOSED) && thread < threads_) work_->take_part(thread);
        inside_.fetch_sub(1);
    }
}

}  // namespace fxq
