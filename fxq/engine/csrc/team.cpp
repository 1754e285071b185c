#include "team.h"

#include <time.h>

#include "abi.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fxq {
namespace {

// What g++ calls for a parallel region, and omp_get_thread_num. LLVM's and Intel's runtimes have both, too.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
using Number = int (*)();

Parallel parallel = nullptr;
Number number = nullptr;
std::atomic<bool> taken{false};

// The clocks of the caller's team: all of its threads spin or none does, so one other thread is enough.
constexpr clockid_t UNKNOWN = 0, NONE = 1;  // the numbers of clocks that no thread has
thread_local clockid_t clock_of_other = UNKNOWN;

void forget() { parallel = nullptr; }

void take_part(void* work) { static_cast<Work*>(work)->take_part(number()); }

#if defined(__linux__)

// The clock that counts the time a thread has run. The kernel refuses one of another process: of a parent, for instance.
void tell_clock(void* clock) {
    constexpr clockid_t RUNNING_TIME = 6;
    const clockid_t thread = static_cast<clockid_t>(syscall(SYS_gettid));
    if (number() == 1) *static_cast<clockid_t*>(clock) = ~thread * 8 | RUNNING_TIME;
}

#else

void tell_clock(void*) {}

#endif

int64_t running_time(clockid_t clock) {
    timespec t;
    return clock_gettime(clock, &t) ? -1 : int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

}  // namespace

void meet_team() {
    if (!parallel || clock_of_other != UNKNOWN) return;
    clockid_t found = NONE;
    parallel(tell_clock, &found, 2, 0);
    clock_of_other = found;
}

bool team_spins() {
    if (!parallel) return false;
    meet_team();
    if (clock_of_other == NONE) return false;
    const int64_t before = running_time(clock_of_other);
    return before >= 0 && running_time(clock_of_other) > before;
}

bool run_on_team(Work* work, int threads) {
    if (!parallel || taken.exchange(true)) return false;
    parallel(take_part, work, static_cast<unsigned>(threads), 0);
    taken.store(false);
    return true;
}

}  // namespace fxq

extern "C" void fxq_openmp(void* parallel, void* number) {
    fxq::parallel = reinterpret_cast<fxq::Parallel>(parallel);
    fxq::number = reinterpret_cast<fxq::Number>(number);
#if defined(__unix__) || defined(__APPLE__)
    static const int registered = pthread_atfork(nullptr, nullptr, fxq::forget);
    (void)registered;
#endif
}
