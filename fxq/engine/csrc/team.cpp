#include "team.h"

#include "abi.h"

#if defined(__linux__)

#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace fxq {
namespace {

// What g++ calls for a parallel region, and omp_get_thread_num. LLVM's and Intel's runtimes have both, too.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
using Number = int (*)();

Parallel parallel = nullptr;
Number number = nullptr;

// One caller at a time. What he and his team tell each other goes through these: nothing depends on how the runtime
// starts and ends a region, which the thread sanitiser does not see.
std::atomic<bool> taken{false};
std::atomic<Work*> lent{nullptr};
std::atomic<clockid_t> told{0};
std::atomic<int> finished{0};

// The clock of another thread of the caller's team: all of them spin or none does, so one is enough. These two are
// numbers of clocks that no thread has.
constexpr clockid_t UNKNOWN = 0, NONE = 1;
thread_local clockid_t clock_of_other = UNKNOWN;

void forget() { parallel = nullptr; }

void take_part(void*) {
    Work* const work = lent.load();
    work->take_part(number());
    finished.fetch_add(1);
}

// The clock counts the time that the thread has run. The kernel refuses one of another process, as a parent's.
void tell_clock(void*) {
    constexpr clockid_t RUNNING_TIME = 6;
    const clockid_t thread = static_cast<clockid_t>(syscall(SYS_gettid));
    if (told.load() == NONE && number() == 1) told.store(~thread * 8 | RUNNING_TIME);
}

// Once for each caller, because it costs a parallel region.
void meet() {
    if (taken.exchange(true)) return;
    told.store(NONE);
    parallel(tell_clock, nullptr, 2, 0);
    clock_of_other = told.load();
    taken.store(false);
}

int64_t running_time(clockid_t clock) {
    timespec t;
    return clock_gettime(clock, &t) ? -1 : int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

}  // namespace

bool team_spins() {
    if (!parallel) return false;
    if (clock_of_other == UNKNOWN) meet();
    if (clock_of_other == UNKNOWN || clock_of_other == NONE) return false;
    const int64_t before = running_time(clock_of_other);
    return before >= 0 && running_time(clock_of_other) > before;
}

bool run_on_team(Work* work, int threads) {
    if (taken.exchange(true)) return false;
    lent.store(work);
    parallel(take_part, nullptr, static_cast<unsigned>(threads), 0);
    finished.load();
    taken.store(false);
    return true;
}

}  // namespace fxq

extern "C" void fxq_openmp(void* parallel, void* number) {
    fxq::parallel = reinterpret_cast<fxq::Parallel>(parallel);
    fxq::number = reinterpret_cast<fxq::Number>(number);
    static const int registered = pthread_atfork(nullptr, nullptr, fxq::forget);
    (void)registered;
}

#else

namespace fxq {

bool team_spins() { return false; }
bool run_on_team(Work*, int) { return false; }

}  // namespace fxq

extern "C" void fxq_openmp(void*, void*) {}

#endif
