#include "team.h"

#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fxq {
namespace {

using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
using Number = int (*)();

Parallel parallel = nullptr;
Number number = nullptr, count = nullptr;

#if defined(__unix__) || defined(__APPLE__)
void forget() { parallel = nullptr; }
#endif

// The size of the team is what the runtime gives: one inside of another parallel region.
void take_part(void* work) { static_cast<Work*>(work)->part(number(), count()); }

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

}  // namespace

void Barrier::wait(int parts) {
    if (parts == 1) return;
    constexpr int PATIENT = 4000;  // then another process that wants the core gets it
    const int turn = turn_.load();
    if (arrived_.fetch_add(1) + 1 == parts) {
        arrived_.store(0);
        turn_.store(turn + 1);
        return;
    }
    for (int i = 1; turn_.load() == turn; ++i)
        if (i % PATIENT)
            relax();
        else
            std::this_thread::yield();
}

void run_team(Work* work, int threads) {
    if (threads > 1 && parallel != nullptr)
        parallel(take_part, work, static_cast<unsigned>(threads), 0);
    else
        work->part(0, 1);
}

}  // namespace fxq

FXQ_EXPORT void fxq_dynamic_openmp(void* parallel, void* number, void* count) {
    fxq::parallel = reinterpret_cast<fxq::Parallel>(parallel);
    fxq::number = reinterpret_cast<fxq::Number>(number);
    fxq::count = reinterpret_cast<fxq::Number>(count);
#if defined(__unix__) || defined(__APPLE__)
    static const int registered = pthread_atfork(nullptr, nullptr, fxq::forget);
    (void)registered;
#endif
}
