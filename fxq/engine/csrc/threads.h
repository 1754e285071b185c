// The process's worker threads. A job is offered to them and done by whoever comes: the caller takes part and never
// waits for a worker that has not come in.
#ifndef FXQ_THREADS_H
#define FXQ_THREADS_H

#include <stdint.h>

#include <atomic>
#include <condition_variable>
#include <mutex>

namespace fxq {

class Work {
   public:
    // Called once by the caller as thread 0 and by each worker that comes in time; returns when nothing is left to
    // claim and everything that was claimed is finished.
    virtual void take_part(int thread) = 0;

   protected:
    ~Work() = default;
};

class Pool {
   public:
    // The pool of this process: a forked child has its own.
    static Pool& instance();

    // Runs `work` with up to `threads` threads. False without having done anything where another caller has the pool.
    bool run(Work* work, int threads);

   private:
    Pool() = default;
    void grow(int threads);
    void serve(int thread);
    uint64_t wait_for_news(uint64_t seen);

    static constexpr int64_t CLOSED = int64_t(1) << 32;

    std::atomic<bool> taken_{false};
    std::atomic<uint64_t> news_{0};        // counts the jobs
    std::atomic<int64_t> inside_{CLOSED};  // workers in the job; CLOSED: no one may come in
    Work* work_ = nullptr;
    int threads_ = 0;
    int workers_ = 0;
    std::atomic<int> asleep_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
};

// Lets a thread that spins give way to the other hardware thread, and after a while to other processes.
class Spin {
   public:
    void wait();

   private:
    int count_ = 0;
};

}  // namespace fxq
#endif
