// The convolution's definition: portable C++, dense, grouped and depthwise.
#include <new>

#include "functions.h"
#include "halo.h"
#include "result.h"

namespace fxq {
namespace FXQ_NS {
namespace {

struct ConvState : State {
    Buffer weights, start, scale, bias;
};

const char* prepare(Operation& op) {
    ConvState* state = new (std::nothrow) ConvState;
    op.state = state;
    Buffer* const copies[4] = {state ? &state->weights : nullptr, state ? &state->start : nullptr,
                               state ? &state->scale : nullptr, state ? &state->bias : nullptr};
    for (int i = 0; i < 4; ++i)
        if (!state || !copies[i]->copy(op.constant[i].data, op.constant[i].bytes)) return "out of memory";
    state->packed_bytes = state->weights.bytes();
    return nullptr;
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const int64_t line = int64_t(op.output->width) * op.constant[0].bytes;
    return split(images * op.output->height, line, 100000, threads);
}

// start[c] + sum(x * w), modulo 2^32. `x` is the address of the first tap's first channel of the group.
int32_t accumulate(const Operation& op, const ConvState& state, const uint8_t* x, int64_t channel, int64_t depth) {
    const int32_t* ints = op.record.ints;
    const int8_t* w = state.weights.as<int8_t>() + channel * ints[0] * ints[1] * depth;
    uint32_t sum = static_cast<uint32_t>(state.start.as<int32_t>()[channel]);
    for (int64_t i = 0; i < ints[0]; ++i) {
        for (int64_t j = 0; j < ints[1]; ++j, w += depth) {
            const uint8_t* tap = x + i * ints[4] * op.input[0]->row_pitch + j * ints[5] * op.input[0]->pixel_pitch;
            for (int64_t k = 0; k < depth; ++k) sum += static_cast<uint32_t>(int32_t(tap[k]) * int32_t(w[k]));
        }
    }
    return static_cast<int32_t>(sum);
}

void finish(const Operation& op, const ConvState& state, int64_t c, int32_t sum, const uint8_t* residual,
            uint8_t* to) {
    const float* floats = op.record.floats;
    const int32_t* ints = op.record.ints;
    float v = fma(static_cast<float>(sum), state.scale.as<float>()[c], state.bias.as<float>()[c]);
    if (ints[13] == 1) v = fma(static_cast<float>(residual[c]), floats[0], v + floats[1]);
    if (ints[13] == 2) v = v + reinterpret_cast<const float*>(residual)[c];
    if (op.output->type == FXQ_F32)
        reinterpret_cast<float*>(to)[c] = apply(ints[9], floats + 3, v);
    else
        to[c] = static_cast<uint8_t>(codes_of(op.record)(apply_scaled(ints[9], floats + 3, floats[2], v)));
}

void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const ConvState& state = *static_cast<const ConvState*>(op.state);
    const Tensor &x = *op.input[0], &y = *op.output;
    const Tensor* const r = op.input[1];
    const int32_t* ints = op.record.ints;
    const int64_t depth = x.channels / ints[8], width = y.channels / ints[8];
    int64_t line, last, unused;
    piece(context.images * y.height, tasks, begin, &line, &unused);
    piece(context.images * y.height, tasks, end - 1, &unused, &last);
    for (; line < last; ++line) {
        const int64_t n = line / y.height, row = line % y.height;
        uint8_t* image = address(context, y, n);
        for (int64_t column = 0; column < y.width; ++column) {
            const uint8_t* from = address(context, x, n) + (row * ints[2] - ints[6]) * x.row_pitch +
                                  (column * ints[3] - ints[7]) * x.pixel_pitch;
            const uint8_t* residual =
                r ? address(context, *r, n) + row * r->row_pitch + column * r->pixel_pitch : nullptr;
            uint8_t* to = image + row * y.row_pitch + column * y.pixel_pitch;
            for (int64_t c = 0; c < y.channels; ++c)
                finish(op, state, c, accumulate(op, state, from + c / width * depth, c, depth), residual, to);
        }
        write_halo(y, image, row, row + 1);
    }
}

}  // namespace

extern const Kernel conv_kernel = {prepare, tasks, run};
extern const Kernel depthwise_kernel = {prepare, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
