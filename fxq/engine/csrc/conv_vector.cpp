// The convolution on vector instruction sets: which pixels and channels are worked through in which order.
#include <new>

#include "conv_block.h"
#include "conv_narrow.h"
#include "conv_walk.h"
#include "conv_winograd.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t L1_INPUT = 24 << 10;   // bytes of input that stay in the first cache beside a panel
constexpr int64_t L2_PANELS = 384 << 10;  // panels that stay in the second cache
constexpr int64_t FEW_GROUPS = 16;        // of pixels
constexpr int64_t LEAST = 1 << 18;        // products of a task: about a microsecond

// The kernel of its own that an operation has, or nullptr.
const Kernel* kernel_of(const Operation& op) {
    if (is_narrow(op)) return &narrow_kernel;
    if (suits_winograd(op)) return &winograd_kernel;
    return nullptr;
}

const char* prepare(Operation& op) {
    if (const Kernel* own = kernel_of(op)) {
        op.kernel = own;
        return own->prepare(op);
    }
    ConvState* state = new (std::nothrow) ConvState;
    op.state = state;
    return state ? pack_convolution(op, 4, state) : "out of memory";
}

// Whether tasks are ranges of output channels: large weights are then read by one thread each; else ranges of pixels.
bool by_channels(const ConvState& state, int64_t pixels) {
    // A few blocks that are not even in number leave a thread idle for long.
    if (state.block_count < 4 || (state.block_count < 9 && state.block_count % 2)) return false;
    return groups_of_pixels(pixels) < 8 || (state.panels.bytes() > L2_PANELS && groups_of_pixels(pixels) < 64);
}

// Pixels that a task is a multiple of: of a few pixels each thread gets the same number.
int64_t unit_of(int64_t pixels) { return groups_of_pixels(pixels) < FEW_GROUPS ? 1 : PIXELS; }

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const ConvState& state = *static_cast<const ConvState*>(op.state);
    const int64_t pixels = images * op.output->height * op.output->width;
    const int64_t epilogue = op.record.ints[9] == FXQ_IDENTITY ? 16 : 80;  // as products, of one output
    const int64_t cost = pixels * (state.panels.bytes() + op.output->channels * epilogue);
    if (by_channels(state, pixels)) return split(state.block_count, cost / state.block_count, LEAST, threads);
    const int64_t unit = unit_of(pixels), lines = (pixels + unit - 1) / unit, pieces = split(lines, cost / lines, LEAST, threads);
    return unit == 1 && pieces > threads ? threads : pieces;
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
    const ConvState& state = *static_cast<const ConvState*>(op.state);
    const int64_t pixels = context.images * op.output->height * op.output->width;
    int64_t low, high, unused;
    if (by_channels(state, pixels)) {
        piece(state.block_count, tasks, begin, &low, &unused);
        piece(state.block_count, tasks, end - 1, &unused, &high);
        return work(op, context, 0, pixels, low, high, low == 0);
    }
    const int64_t unit = unit_of(pixels), lines = (pixels + unit - 1) / unit;
    piece(lines, tasks, begin, &low, &unused);
    piece(lines, tasks, end - 1, &unused, &high);
    work(op, context, low * unit, high * unit < pixels ? high * unit : pixels, 0, state.block_count, true);
}

}  // namespace

extern const Kernel conv_kernel = {prepare, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
