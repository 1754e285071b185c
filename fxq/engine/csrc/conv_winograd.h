// 3x3 convolutions by Winograd's transforms, which the vector convolution leaves to a kernel of their own.
#ifndef FXQ_CONV_WINOGRAD_H
#define FXQ_CONV_WINOGRAD_H

#include "kernel.h"
#include "vec.h"

namespace fxq {
namespace FXQ_NS {

// Whether the transforms apply to the operation, give exact sums, and pay.
bool suits_winograd(const Operation& op);

extern const Kernel winograd_kernel;

}  // namespace FXQ_NS
}  // namespace fxq
#endif
