// Products of codes with one code a channel, as squeeze-and-excite has them, in 16-bit whole numbers.
#ifndef FXQ_GATING_H
#define FXQ_GATING_H

#include "kernel.h"
#include "vec.h"

namespace fxq {
namespace FXQ_NS {

// What gating_kernel needs for an FXQ_MUL, or nullptr: its operands are of another kind, many of the gate's codes have no
// such numbers, or there is no memory.
State* gating_state(const Operation& op);

extern const Kernel gating_kernel;

}  // namespace FXQ_NS
}  // namespace fxq
#endif
