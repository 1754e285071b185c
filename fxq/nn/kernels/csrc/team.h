// Work for the threads of the OpenMP runtime that PyTorch runs its operators on: between two operators these spin, and
// threads of another pool would have to share the cores with them.
#ifndef FXQ_DYNAMIC_TEAM_H
#define FXQ_DYNAMIC_TEAM_H

#include <atomic>

#include "dynamic.h"

namespace fxq {

// Where the threads of a team wait for each other.
class Barrier {
   public:
    void wait(int parts);

   private:
    std::atomic<int> arrived_{0}, turn_{0};
};

class Work {
   public:
    // Called by each of `parts` threads with a number of its own.
    virtual void part(int number, int parts) = 0;

   protected:
    ~Work() = default;
    Barrier barrier_;
};

// Runs `work` on up to `threads` threads, the caller among them; on him alone where no runtime is known.
void run_team(Work* work, int threads);

// The share of thread `number` in `count` things.
struct Share {
    int64_t first, last;

    Share(int64_t count, int number, int parts) : first(count * number / parts), last(count * (number + 1) / parts) {}
};

}  // namespace fxq

// Tells where the runtime's GOMP_parallel, omp_get_thread_num and omp_get_num_threads are. A forked child forgets it:
// GNU's runtime would wait there for threads that only the parent has.
FXQ_EXPORT void fxq_dynamic_openmp(void* parallel, void* number, void* count);

#endif
