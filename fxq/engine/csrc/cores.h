// Which cores threads run on.
#ifndef FXQ_CORES_H
#define FXQ_CORES_H

#include <thread>

namespace fxq {

// The core that the calling thread runs on; -1 where the system does not say.
int this_core();

// Lets `thread` run on every core that the calling thread may use except `core`. It stays as it is where none would be
// left, or the system has no such thing.
void keep_off(std::thread::native_handle_type thread, int core);

}  // namespace fxq
#endif
