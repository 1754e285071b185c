// The process's worker threads. A job is offered to them and done by whoever comes: the caller takes part and never
// waits for a worker that has not come in.
//
// A worker without work spins for a while (AWAKE) and then sleeps; an idle process uses no processor. Waking it costs
// the caller some microseconds and takes a hundred in a virtual machine, so a short job after a pause is not offered.
#ifndef FXQ_THREADS_H
#define FXQ_THREADS_H

#include <stdint.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

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

    // Whether workers would shorten a job that takes one thread so many nanoseconds: they are awake, or the job is long,
    // or jobs follow each other so closely that the worker which is woken now is awake for the next one.
    bool worth(int64_t nanoseconds) const;

    // Runs `work` with up to `threads` threads. False without having done anything where another caller has the pool.
    bool run(Work* work, int threads);

    // To be called after every job, also one that was not offered.
    void finished() { last_.store(now(), std::memory_order_relaxed); }

    // Nanoseconds of a clock that never goes back.
    static int64_t now();

   private:
    Pool() = default;
    void grow(int threads);
    void wake();
    void serve(int thread);
    uint64_t wait_for_news(uint64_t seen);

    static constexpr int64_t CLOSED = int64_t(1) << 32;

    std::atomic<bool> taken_{false};
    std::atomic<uint64_t> news_{0};        // counts the jobs
    std::atomic<int64_t> inside_{CLOSED};  // workers in the job; CLOSED: no one may come in
    std::atomic<int64_t> last_{0};         // when the last job ended
    Work* work_ = nullptr;
    int threads_ = 0;
    std::vector<std::thread::native_handle_type> workers_;
    int avoided_ = -1;  // the core that the workers keep off
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
