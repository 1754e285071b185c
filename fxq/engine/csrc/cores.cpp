#include "cores.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace fxq {

#if defined(__linux__)

int this_core() { return sched_getcpu(); }

void keep_off(std::thread::native_handle_type thread, int core) {
    cpu_set_t cores;
    if (core < 0 || core >= CPU_SETSIZE || sched_getaffinity(0, sizeof cores, &cores)) return;
    CPU_CLR(core, &cores);
    if (CPU_COUNT(&cores) > 0) pthread_setaffinity_np(thread, sizeof cores, &cores);
}

#else

int this_core() { return -1; }
void keep_off(std::thread::native_handle_type, int) {}

#endif

}  // namespace fxq
