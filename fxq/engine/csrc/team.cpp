#include "team.h"

#include "abi.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fxq {
namespace {

// What g++ calls for a parallel region, and omp_get_thread_num. LLVM's and Intel's runtimes have both, too.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
using Number = int (*)();

Parallel parallel = nullptr;
Number number = nullptr;
std::atomic<bool> taken{false};

void forget() { parallel = nullptr; }

void take_part(void* work) { static_cast<Work*>(work)->take_part(number()); }

}  // namespace

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
