#include "threads.h"

#include <chrono>
#include <new>
#include <system_error>

#include "cores.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fxq {
namespace {

constexpr size_t MOST_WORKERS = 255;
// In nanoseconds. A worker spins for about as long as waking it takes: so that costs at most twice what it had to. A
// job that is shorter is over before a worker that sleeps has come.
constexpr int64_t AWAKE = 200000;
constexpr int64_t WORTH_WAKING = 200000;

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

int64_t Pool::now() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

void Pool::grow(int threads) {
    while (workers_.size() + 1 < static_cast<size_t>(threads) && workers_.size() < MOST_WORKERS) {
        try {
            const int number = static_cast<int>(workers_.size()) + 1;
            workers_.reserve(workers_.size() + 1);
            std::thread worker([this, number] { serve(number); });
            workers_.push_back(worker.native_handle());
            worker.detach();
        } catch (const std::system_error&) {
            return;  // the system gives no more threads: fewer do the work
        }
        avoided_ = -1;
    }
}

bool Pool::worth(int64_t nanoseconds) const {
    if (nanoseconds >= WORTH_WAKING) return true;
    return asleep_.load(std::memory_order_relaxed) == 0 || now() - last_.load(std::memory_order_relaxed) < AWAKE;
}

// Linux likes to wake a thread on the core of whoever wakes it, and leaves both there for milliseconds, taking turns,
// while another core is idle. So the core of the caller is out of bounds for workers that sleep.
void Pool::wake() {
    const int core = this_core();
    if (core != avoided_) {
        for (const auto worker : workers_) keep_off(worker, core);
        avoided_ = core;
    }
    { const std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
}

bool Pool::run(Work* work, int threads) {
    if (taken_.exchange(true)) return false;
    grow(threads);
    work_ = work;
    threads_ = threads;
    inside_.fetch_and(~CLOSED);
    news_.fetch_add(1);
    if (asleep_.load() > 0) wake();
    work->take_part(0);
    inside_.fetch_or(CLOSED);
    Spin spin;
    while (inside_.load() & (CLOSED - 1)) spin.wait();
    taken_.store(false);
    return true;
}

uint64_t Pool::wait_for_news(uint64_t seen) {
    const int64_t until = now() + AWAKE;
    do {
        for (int i = 0; i < 32; ++i) {
            if (news_.load(std::memory_order_acquire) != seen) return news_.load();
            relax();
        }
    } while (now() < until);
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.fetch_add(1);
    wake_.wait(lock, [&] { return news_.load() != seen; });
    asleep_.fetch_sub(1);
    return news_.load();
}

void Pool::serve(int thread) {
#if defined(__linux__)
    pthread_setname_np(pthread_self(), "fxq");  // as debuggers and profilers show it
#endif
    uint64_t seen = 0;
    for (;;) {
        seen = wait_for_news(seen);
        // Whoever comes in before the job is closed may use it until he leaves: the caller waits for that.
        if (!(inside_.fetch_add(1) & CLOSED) && thread < threads_) work_->take_part(thread);
        inside_.fetch_sub(1);
    }
}

}  // namespace fxq
