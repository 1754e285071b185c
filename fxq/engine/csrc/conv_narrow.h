// Convolutions in narrow groups, which the vector convolution leaves to a kernel of their own.
#ifndef FXQ_CONV_NARROW_H
#define FXQ_CONV_NARROW_H

#include "kernel.h"
#include "vec.h"

namespace fxq {
namespace FXQ_NS {

// Whether groups have 4 or 8 input channels and as many outputs.
inline bool is_narrow(const Operation& op) {
    const int64_t groups = op.record.ints[8], width = op.output->channels / groups;
    return groups > 1 && op.input[0]->channels == op.output->channels && (width == 4 || width == 8);
}

extern const Kernel narrow_kernel;

}  // namespace FXQ_NS
}  // namespace fxq
#endif
