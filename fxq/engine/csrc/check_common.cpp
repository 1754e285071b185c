#include "checks.h"

namespace fxq {
namespace {

constexpr int32_t MOST = 1 << 15;  // of a kernel's extent, stride, dilation, padding

// First and last row (or column) that the taps of an axis reach.
void reach(int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t padding, int64_t* low,
           int64_t* high) {
    *low = -padding;
    *high = (out - 1) * stride - padding + (kernel - 1) * dilation;
}

}  // namespace

const char* check_limits(const Operation& op) {
    const int32_t* ints = op.record.ints;
    if (!between(ints[10], 0, 255)) return "the output zero point is no code";
    if (!between(ints[11], 0, 255) || !between(ints[12], ints[11], 255)) return "the limits are no codes in order";
    return nullptr;
}

const char* check_function(const Operation& op) {
    if (!between(op.record.ints[9], FXQ_IDENTITY, FXQ_MISH)) return "unknown function";
    return nullptr;
}

const char* check_window(const Operation& op, bool inside) {
    const int32_t* ints = op.record.ints;
    for (int i = 0; i < 6; ++i)
        if (!between(ints[i], 1, MOST)) return "a kernel's extent, stride or dilation is not positive or too large";
    if (!between(ints[6], 0, MOST) || !between(ints[7], 0, MOST)) return "the padding is negative or too large";
    const Tensor &x = *op.input[0], &y = *op.output;
    int64_t low, high;
    reach(y.height, ints[0], ints[2], ints[4], ints[6], &low, &high);
    if (!inside && (low < -x.top || high > x.height - 1 + x.bottom)) return "a tap lies above or below the halo";
    reach(y.width, ints[1], ints[3], ints[5], ints[7], &low, &high);
    if (!inside && (low < -x.left || high > x.width - 1 + x.right)) return "a tap lies left or right of the halo";
    return nullptr;
}

}  // namespace fxq
