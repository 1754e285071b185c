#include "checks.h"

namespace fxq {
namespace {

constexpr int64_t MOST_SUMMED = 1 << 14;  // products of codes that a sum of attention holds

// A u8 or float32 operand whose channels lie side by side; its zero point.
const char* check_source(const Tensor* x, int32_t zero) {
    if (!x) return "an input is missing";
    if (const char* why = check_dense(*x)) return why;
    return between(zero, 0, 255) ? nullptr : "an input's zero point is no code";
}

const char* check_target(const Operation& op) {
    if (const char* why = check_dense(*op.output)) return why;
    return op.output->type == FXQ_U8 ? check_limits(op) : nullptr;
}

const char* check_pixels(const Operation& op) {
    if (const char* why = check_source(op.input[0], op.record.ints[14])) return why;
    if (!same_shape(*op.input[0], *op.output)) return "the shapes differ";
    return check_target(op);
}

const char* check_mask(const Operation& op) {
    const int32_t* ints = op.record.ints;
    const int64_t queries = op.input[0]->width, keys = op.input[1]->width;
    if (const Tensor* x = op.input[3]) {
        if (x->type != FXQ_F32) return "the mask is not float32";
        if (x->height != 1 && x->height != ints[0]) return "the mask has neither one nor all heads";
        if (x->width != 1 && x->width != queries) return "the mask has neither one nor all queries";
        return x->channels == keys ? nullptr : "the mask has another number of keys";
    }
    if (!op.constant[0].data) return nullptr;
    if (ints[5] != 1 && ints[5] != ints[0]) return "the mask has neither one nor all heads";
    if (ints[6] != 1 && ints[6] != queries) return "the mask has neither one nor all queries";
    return op.constant[0].bytes / 4 / ints[5] / ints[6] >= keys ? nullptr : "the mask is too small";
}

// All but the output's limits.
const char* check_attention_of(const Operation& op, int32_t type) {
    for (int i = 0; i < 3; ++i) {
        const Tensor* x = op.input[i];
        if (!x) return "an input is missing";
        if (const char* why = check_dense(*x)) return why;
        if (x->type != type) return "queries, keys or values are of another type";
        if (x->height != 1) return "an input has several rows: tokens are columns";
    }
    const Tensor &q = *op.input[0], &k = *op.input[1], &v = *op.input[2], &y = *op.output;
    const int32_t heads = op.record.ints[0];
    if (y.height != 1 || y.width != q.width || y.channels != v.channels) return "the output has another shape";
    if (k.width != v.width || k.channels != q.channels) return "queries, keys and values do not fit";
    if (heads < 1 || q.channels % heads || v.channels % heads) return "the channels do not divide into heads";
    return check_mask(op);
}

}  // namespace

const char* check_layer_norm(const Operation& op) {
    if (const char* why = check_pixels(op)) return why;
    const int64_t bytes = int64_t(op.output->channels) * 4;
    if (op.constant[0].bytes < bytes) return "its weights are too few";
    return !op.constant[1].data || op.constant[1].bytes >= bytes ? nullptr : "its biases are too few";
}

const char* check_rms_norm(const Operation& op) {
    if (const char* why = check_pixels(op)) return why;
    return op.constant[0].bytes >= int64_t(op.output->channels) * 4 ? nullptr : "its weights are too few";
}

const char* check_softmax(const Operation& op) { return check_pixels(op); }

const char* check_attention(const Operation& op) {
    if (const char* why = check_attention_of(op, FXQ_F32)) return why;
    return check_target(op);
}

const char* check_code_attention(const Operation& op) {
    if (const char* why = check_attention_of(op, FXQ_U8)) return why;
    for (int i = 0; i < 3; ++i)
        if (!between(op.record.ints[2 + i], 0, 255)) return "an input's zero point is no code";
    const int64_t depth = op.input[0]->channels / op.record.ints[0];
    if (depth > MOST_SUMMED || op.input[1]->width > MOST_SUMMED) return "its sums may leave 32 bits";
    return check_target(op);
}

}  // namespace fxq
