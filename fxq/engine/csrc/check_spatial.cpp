#include <math.h>
#include <string.h>

#include "checks.h"

namespace fxq {
namespace {

constexpr int64_t MOST_TAPS = 8421504;  // their sum of codes fits into 31 bits

// Whether each window has a tap inside of the image.
bool covered(int64_t out, int64_t in, int64_t kernel, int64_t stride, int64_t dilation, int64_t padding) {
    const int64_t reach = (kernel - 1) * dilation;
    for (int64_t i = 0; i < out; ++i) {
        const int64_t start = i * stride - padding;
        const int64_t first = start >= 0 ? start : start + (-start + dilation - 1) / dilation * dilation;
        if (first >= in || first > start + reach) return false;
    }
    return true;
}

const char* check_windows(const Operation& op) {
    if (const char* why = check_window(op, true)) return why;
    const int32_t* ints = op.record.ints;
    const Tensor &x = *op.input[0], &y = *op.output;
    if (!covered(y.height, x.height, ints[0], ints[2], ints[4], ints[6]) ||
        !covered(y.width, x.width, ints[1], ints[3], ints[5], ints[7]))
        return "a window lies outside of the image";
    return int64_t(ints[0]) * ints[1] <= MOST_TAPS ? nullptr : "its windows are too large";
}

// Pairs of first and end of each window.
const char* check_list(const Constant& constant, int64_t out, int64_t in) {
    if (constant.bytes < out * 8) return "a list of windows is too short";
    const int32_t* pair = constant.as<int32_t>();
    for (int64_t i = 0; i < out; ++i, pair += 2)
        if (pair[0] < 0 || pair[1] <= pair[0] || pair[1] > in) return "a window lies outside of the image";
    return nullptr;
}

const char* check_images(const Operation& op) {
    if (!op.input[0]) return "it has no input";
    if (op.input[0]->channels != op.output->channels) return "the channels differ";
    if (const char* why = check_dense(*op.input[0])) return why;
    return check_dense(*op.output);
}

const char* check_codes(const Operation& op) {
    if (!op.input[0] || op.input[0]->type != FXQ_U8 || op.output->type != FXQ_U8) return "it is not u8 to u8";
    if (const char* why = check_images(op)) return why;
    return check_limits(op);
}

const char* check_table(const Constant& constant, int64_t out, int64_t in, bool bilinear) {
    const int64_t step = bilinear ? 8 : 4;
    if (constant.bytes < out * step) return "a table is too short";
    for (int64_t i = 0; i < out; ++i) {
        int32_t index;
        float weight = 0.0f;
        memcpy(&index, constant.as<uint8_t>() + i * step, 4);
        if (bilinear) memcpy(&weight, constant.as<uint8_t>() + i * step + 4, 4);
        if (!between(index, 0, in - 1)) return "a table points outside of the image";
        if (!(weight >= 0.0f && weight <= 1.0f)) return "a weight is not between 0 and 1";
    }
    return nullptr;
}

}  // namespace

const char* check_dense(const Tensor& tensor) {
    if (tensor.channel_pitch == tensor.size || tensor.channels == 1) return nullptr;
    return "the channels of a value do not lie side by side";
}

const char* check_max_pool(const Operation& op) {
    if (const char* why = check_codes(op)) return why;
    return check_windows(op);
}

const char* check_average_pool(const Operation& op) {
    const bool real = op.input[0] && op.input[0]->type == FXQ_F32 && op.output->type == FXQ_F32;
    if (const char* why = real ? check_images(op) : check_codes(op)) return why;
    const int32_t* ints = op.record.ints;
    const Tensor &x = *op.input[0], &y = *op.output;
    if (!between(ints[14], 0, 255)) return "the input's zero point is no code";
    if (ints[15] < 0) return "the divisor is negative";
    if (!ints[16]) return check_windows(op);
    if (int64_t(x.height) * x.width > MOST_TAPS) return "its windows are too large";
    if (const char* why = check_list(op.constant[0], y.height, x.height)) return why;
    return check_list(op.constant[1], y.width, x.width);
}

const char* check_resize(const Operation& op) {
    const int32_t* ints = op.record.ints;
    if (!op.input[0]) return "it has no input";
    const Tensor &x = *op.input[0], &y = *op.output;
    if (x.channels != y.channels) return "the channels differ";
    if (const char* why = check_dense(x)) return why;
    if (const char* why = check_dense(y)) return why;
    if (!between(ints[0], 0, 1)) return "unknown mode";
    if (ints[0] == 0 && x.type != y.type) return "the types differ";
    if (!between(ints[14], 0, 255)) return "the input's zero point is no code";
    if (ints[0] == 1 && y.type == FXQ_U8)
        if (const char* why = check_limits(op)) return why;
    if (const char* why = check_table(op.constant[0], y.height, x.height, ints[0] == 1)) return why;
    return check_table(op.constant[1], y.width, x.width, ints[0] == 1);
}

}  // namespace fxq
