// The convolution on vector instruction sets: which pixels and channels are worked through in which order.
#include <new>

#if defined(FXQ_AVX512VNNI)
#include "conv_block_avx512.h"
#else
#include "conv_block_avx2.h"
#endif
#include "conv_narrow.h"
#include "conv_walk.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t L1_INPUT = 24 << 10;   // bytes of input that stay in the first cache beside a panel
constexpr int64_t L2_PANELS = 384 << 10;  // panels that stay in the second cache
constexpr int64_t LEAST = 2 << 20;        // products of a task

const char* prepare(Operation& op) {
    if (is_narrow(op)) return narrow_kernel.prepare(op);
    ConvState* state = new (std::nothrow) ConvState;
    op.state = state;
    return state ? pack_convolution(op, 4, state) : "out of memory";
}

// Whether tasks are ranges of output channels: large weights are then read by one thread each; else ranges of pixels.
bool by_channels(const ConvState& state, int64_t pixels) {
    if (state.block_count < 4) return false;
    return groups_of_pixels(pixels) < 8 || (state.panels.bytes() > L2_PANELS && groups_of_pixels(pixels) < 64);
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    if (is_narrow(op)) return narrow_kernel.tasks(op, images, threads);
    const ConvState& state = *static_cast<const ConvState*>(op.state);
    const int64_t pixels = images * op.output->height * op.output->width;
    const int64_t lines = by_channels(state, pixels) ? state.block_count : groups_of_pixels(pixels);
    return split(lines, pixels * state.panels.bytes() / lines, LEAST, threads);
}

// Pixels that are worked through with one panel before the next panel is taken.
int64_t sweep(const Operation& op, const ConvState& state) {
    constexpr int64_t most = Pixels::CAPACITY / STRIP * STRIP;
    if (state.panels.bytes() > L2_PANELS) return most;
    const int64_t each = PIXELS * op.input[0]->channels * op.record.ints[3];
    int64_t count = L1_INPUT / each * PIXELS;
    if (count > STRIP) count = count / STRIP * STRIP;
    if (count < PIXELS) count = PIXELS;
    return count < most ? count : most;
}

// Pixels begin..end-1 by blocks first..last-1. `halo`: this task writes the halo.
void work(const Operation& op, const Context& context, int64_t begin, int64_t end, int64_t first, int64_t last,
          bool halo) {
    const ConvState& state = *static_cast<const ConvState*>(op.state);
    const int64_t step = sweep(op, state);
    Walker walker(op, context, begin);
    Pixels pixels;
    while (begin < end) {
        const int64_t count = end - begin < step ? end - begin : step;
        walker.note(count, halo, &pixels);
        for (int64_t b = first; b < last; ++b) run_pixels(job_of(op, state, b), pixels, count);
        begin += count;
    }
}

void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    if (is_narrow(op)) return narrow_kernel.run(op, context, tasks, begin, end);
    const ConvState& state = *static_cast<const ConvState*>(op.state);
    const int64_t pixels = context.images * op.output->height * op.output->width;
    int64_t low, high, unused;
    if (by_channels(state, pixels)) {
        piece(state.block_count, tasks, begin, &low, &unused);
        piece(state.block_count, tasks, end - 1, &unused, &high);
        return work(op, context, 0, pixels, low, high, low == 0);
    }
    piece(groups_of_pixels(pixels), tasks, begin, &low, &unused);
    piece(groups_of_pixels(pixels), tasks, end - 1, &unused, &high);
    const int64_t last = high * PIXELS < pixels ? high * PIXELS : pixels;
    work(op, context, low * PIXELS, last, 0, state.block_count, true);
}

}  // namespace

extern const Kernel conv_kernel = {prepare, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
