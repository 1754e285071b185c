// Operations of one value, element by element: QUANTISE, DEQUANTISE, UNARY_F32.
#include "finish.h"
#include "rows.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t LEAST = 16384;  // elements of a task

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const int64_t cost = op.record.ints[9] == FXQ_IDENTITY ? 1 : 4;
    return split(images * op.output->height, cost * op.output->width * op.output->channels, LEAST, threads);
}

void quantise(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const Finish finish(true, op.record.floats[0], Codes(op.record.ints[0], 0, 255));
    each_run(op, context, tasks, begin, end, [&](const uint8_t* from, uint8_t* to, int64_t count) {
        finish(NumberSource{reinterpret_cast<const float*>(from)}, to, count);
    });
}

void dequantise(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const Finish finish(false, 1.0f, Codes(0, 0, 255));
    const F zero = set(static_cast<float>(op.record.ints[0])), scale = set(op.record.floats[0]);
    each_run(op, context, tasks, begin, end, [&](const uint8_t* from, uint8_t* to, int64_t count) {
        finish(CodeSource{from, zero, scale}, to, count);
    });
}

void unary(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const Finish finish(op.record, *op.output);
    each_run(op, context, tasks, begin, end, [&](const uint8_t* from, uint8_t* to, int64_t count) {
        finish(RealSource{reinterpret_cast<const float*>(from)}, to, count);
    });
}

}  // namespace

extern const Kernel quantise_kernel = {nullptr, tasks, quantise};
extern const Kernel dequantise_kernel = {nullptr, tasks, dequantise};
extern const Kernel unary_kernel = {nullptr, tasks, unary};

}  // namespace FXQ_NS
}  // namespace fxq
