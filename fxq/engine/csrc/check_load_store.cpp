#include "checks.h"

namespace fxq {

const char* check_load(const Operation& op) {
    const Tensor* x = op.input[0];
    const Tensor& y = *op.output;
    if (!x || x->place != FXQ_INPUT) return "it does not read an input of the call";
    if (y.place != FXQ_ARENA) return "it does not write to the arena";
    if (x->height != y.height || x->width != y.width || x->channels > y.channels) return "the shapes differ";
    if (x->type == FXQ_U8 && y.type == FXQ_F32) return "a u8 input cannot become float32";
    if (!between(op.record.ints[0], 0, 255)) return "the zero point is no code";
    return nullptr;
}

const char* check_store(const Operation& op) {
    const Tensor* x = op.input[0];
    const Tensor& y = *op.output;
    if (!x || x->place != FXQ_ARENA) return "it does not read from the arena";
    if (y.place != FXQ_OUTPUT) return "it does not write an output of the call";
    if (!same_shape(*x, y)) return "the shapes differ";
    if (x->type == FXQ_F32 && y.type == FXQ_U8) return "a float32 value cannot become u8";
    if (!between(op.record.ints[0], 0, 255)) return "the zero point is no code";
    return nullptr;
}

}  // namespace fxq
