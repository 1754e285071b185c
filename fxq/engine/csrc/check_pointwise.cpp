#include "checks.h"

namespace fxq {
namespace {

bool broadcasts(int64_t extent, int64_t to) { return extent == to || extent == 1; }

const char* check_operand(const Operation& op, int index) {
    const Tensor &x = *op.input[index], &y = *op.output;
    if (!broadcasts(x.height, y.height) || !broadcasts(x.width, y.width) || !broadcasts(x.channels, y.channels))
        return "an operand does not broadcast to the output";
    if (!between(op.record.ints[14 + index], 0, 255)) return "an operand's zero point is no code";
    return nullptr;
}

const char* check_result(const Operation& op) {
    if (const char* why = check_function(op)) return why;
    return op.output->type == FXQ_U8 ? check_limits(op) : nullptr;
}

}  // namespace

const char* check_binary(const Operation& op) {
    for (int i = 0; i < 2; ++i) {
        if (!op.input[i]) return "an operand is missing";
        if (const char* why = check_operand(op, i)) return why;
    }
    return check_result(op);
}

const char* check_add_real(const Operation& op) {
    if (op.input[1]) return check_binary(op);
    if (op.input[0])
        if (const char* why = check_operand(op, 0)) return why;
    const int32_t* ints = op.record.ints;
    const Tensor& y = *op.output;
    if (!op.constant[0].data) return "it has neither a second operand nor a constant";
    if (!broadcasts(ints[0], y.height) || !broadcasts(ints[1], y.width) || !broadcasts(ints[2], y.channels))
        return "the constant does not broadcast to the output";
    if (op.constant[0].bytes / 4 / ints[0] / ints[1] < ints[2]) return "the constant is too small";
    return check_result(op);
}

const char* check_unary(const Operation& op) {
    if (!op.input[0] || op.input[0]->type != FXQ_F32) return "its input is not float32";
    if (!same_shape(*op.input[0], *op.output)) return "the shapes differ";
    return check_result(op);
}

const char* check_quantise(const Operation& op) {
    if (!op.input[0] || op.input[0]->type != FXQ_F32 || op.output->type != FXQ_U8) return "it is not float32 to u8";
    if (!same_shape(*op.input[0], *op.output)) return "the shapes differ";
    return between(op.record.ints[0], 0, 255) ? nullptr : "the zero point is no code";
}

const char* check_dequantise(const Operation& op) {
    if (!op.input[0] || op.input[0]->type != FXQ_U8 || op.output->type != FXQ_F32) return "it is not u8 to float32";
    if (!same_shape(*op.input[0], *op.output)) return "the shapes differ";
    return between(op.record.ints[0], 0, 255) ? nullptr : "the zero point is no code";
}

const char* check_copy(const Operation& op) {
    if (!op.input[0] || op.input[0]->type != op.output->type) return "the types differ";
    return same_shape(*op.input[0], *op.output) ? nullptr : "the shapes differ";
}

const char* check_lookup(const Operation& op) {
    if (!op.input[0] || op.input[0]->type != FXQ_U8 || op.output->type != FXQ_U8) return "it is not u8 to u8";
    if (op.constant[0].bytes < 256) return "its table has fewer than 256 entries";
    return same_shape(*op.input[0], *op.output) ? nullptr : "the shapes differ";
}

}  // namespace fxq
