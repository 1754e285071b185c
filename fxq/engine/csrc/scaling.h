// Depthwise 1 x 1 windows in 16-bit whole numbers: a batch norm of codes.
#ifndef FXQ_SCALING_H
#define FXQ_SCALING_H

#include "kernel.h"
#include "vec.h"

namespace fxq {
namespace FXQ_NS {

// What scaling_kernel needs for a depthwise operation, or nullptr: it is of another kind, has too few channels, has no
// such numbers for many of them, or there is no memory.
State* scaling_state(const Operation& op);

extern const Kernel scaling_kernel;

}  // namespace FXQ_NS
}  // namespace fxq
#endif
