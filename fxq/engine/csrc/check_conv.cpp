#include "checks.h"

namespace fxq {
namespace {

const char* check_residual(const Operation& op) {
    const int32_t kind = op.record.ints[13];
    const Tensor* residual = op.input[1];
    if (!between(kind, 0, 2)) return "unknown kind of residual";
    if ((kind == 0) != (residual == nullptr)) return "the kind of residual does not fit its inputs";
    if (!residual) return nullptr;
    if (!same_shape(*residual, *op.output)) return "the residual's shape is not the output's";
    if (residual->type != (kind == 1 ? FXQ_U8 : FXQ_F32)) return "the residual's type does not fit its kind";
    if (residual->channel_pitch != residual->size) return "the residual's channels are not adjacent";
    return nullptr;
}

const char* check_constants(const Operation& op, int64_t taps) {
    const int64_t channels = op.output->channels;
    const int64_t bytes = op.constant[0].bytes;  // divided, because channels * taps may overflow
    if (bytes % channels || bytes / channels != taps) return "the weights' size does not fit the shapes";
    for (int i = 1; i < 4; ++i)
        if (op.constant[i].bytes != 4 * channels) return "start, scale or bias has not one number a channel";
    return nullptr;
}

// Everything but the number of channels.
const char* check_layer(const Operation& op) {
    if (!op.input[0] || op.input[0]->type != FXQ_U8) return "the input is not u8";
    if (op.input[2] || op.input[3]) return "too many inputs";
    if (op.input[0]->channel_pitch != 1) return "the input's channels are not adjacent";
    if (op.output->channel_pitch != op.output->size) return "the output's channels are not adjacent";
    if (const char* why = check_window(op, false)) return why;
    if (const char* why = check_function(op)) return why;
    if (const char* why = check_limits(op)) return why;
    return check_residual(op);
}

}  // namespace

const char* check_conv(const Operation& op) {
    if (const char* why = check_layer(op)) return why;
    const int64_t groups = op.record.ints[8];
    if (groups < 1 || op.input[0]->channels % groups || op.output->channels % groups)
        return "the groups do not divide the channels";
    const int64_t depth = op.input[0]->channels / groups;
    return check_constants(op, int64_t(op.record.ints[0]) * op.record.ints[1] * depth);
}

const char* check_depthwise(const Operation& op) {
    if (const char* why = check_layer(op)) return why;
    if (op.record.ints[8] != op.output->channels || op.input[0]->channels != op.output->channels)
        return "groups, input and output channels are not equal";
    return check_constants(op, int64_t(op.record.ints[0]) * op.record.ints[1]);
}

}  // namespace fxq
