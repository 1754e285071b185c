// The convolution on vector instruction sets: which pixels and channels are worked through in which order.
#include <new>

#if defined(FXQ_AVX512VNNI)
#include "conv_block_avx512.h"
#else
#include "conv_block_avx2.h"
#endif
#include "halo.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t L1_INPUT = 24 << 10;   // bytes of input that stay in the first cache beside a panel
constexpr int64_t L2_PANELS = 384 << 10;  // panels that stay in the second cache
constexpr int64_t LEAST = 2 << 20;        // products of a task

const char* prepare(Operation& op) {
    ConvState* state = new (std::nothrow) ConvState;
    op.state = state;
    return state ? pack_convolution(op, 4, state) : "out of memory";
}

int64_t groups_of_pixels(int64_t pixels) { return (pixels + PIXELS - 1) / PIXELS; }

// Whether tasks are ranges of output channels: large weights are then read by one thread each; else ranges of pixels.
bool by_channels(const ConvState& state, int64_t pixels) {
    if (state.block_count < 4) return false;
    return groups_of_pixels(pixels) < 8 || (state.panels.bytes() > L2_PANELS && groups_of_pixels(pixels) < 64);
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const ConvState& state = *static_cast<const ConvState*>(op.state);
    const int64_t pixels = images * op.output->height * op.output->width;
    const int64_t lines = by_channels(state, pixels) ? state.block_count : groups_of_pixels(pixels);
    return split(lines, pixels * state.panels.bytes() / lines, LEAST, threads);
}

Finish finish_of(const Operation& op, const ConvState& state) {
    const int32_t* ints = op.record.ints;
    if (op.output->type != FXQ_U8 || ints[9] != FXQ_IDENTITY || ints[13] == 2 || !state.bounded) return FINISH_ANY;
    return ints[13] == 1 ? FINISH_RESIDUAL : FINISH_PLAIN;
}

// Walks the output's pixels, images after images, and notes their addresses.
class Walker {
   public:
    Walker(const Operation& op, const Context& context, int64_t pixel) : op_(op), context_(context) {
        const Tensor& y = *op.output;
        image_ = pixel / (int64_t(y.height) * y.width);
        row_ = pixel / y.width % y.height;
        column_ = pixel % y.width;
        enter_row();
    }

    // Notes the next `count` pixels; writes the halo of every row that begins among them, where asked to.
    void note(int64_t count, bool halo, Pixels* pixels) {
        const Tensor& y = *op_.output;
        const int64_t x_step = op_.record.ints[3] * op_.input[0]->pixel_pitch;
        const int64_t r_step = op_.input[1] ? op_.input[1]->pixel_pitch : 0;
        for (int64_t i = 0; i < count;) {
            if (halo && column_ == 0) write_halo(y, address(context_, y, image_), row_, row_ + 1);
            const int64_t left = y.width - column_, run = left < count - i ? left : count - i;
            for (int64_t j = 0; j < run; ++j, ++i) {
                pixels->x[i] = x_ + j * x_step;
                pixels->y[i] = y_ + j * y.pixel_pitch;
                pixels->r[i] = r_ + j * r_step;
            }
            x_ += run * x_step, y_ += run * y.pixel_pitch, r_ += run * r_step;
            column_ += run;
            if (column_ == y.width) next_row();
        }
    }

   private:
    void next_row() {
        column_ = 0;
        if (++row_ == op_.output->height) {
            row_ = 0;
            if (++image_ == context_.images) return;
        }
        enter_row();
    }

    void enter_row() {
        const int32_t* ints = op_.record.ints;
        const Tensor &x = *op_.input[0], &y = *op_.output;
        x_ = address(context_, x, image_) + (row_ * ints[2] - ints[6]) * x.row_pitch +
             (column_ * ints[3] - ints[7]) * x.pixel_pitch;
        y_ = address(context_, y, image_) + row_ * y.row_pitch + column_ * y.pixel_pitch;
        if (const Tensor* r = op_.input[1])
            r_ = address(context_, *r, image_) + row_ * r->row_pitch + column_ * r->pixel_pitch;
    }

    const Operation& op_;
    const Context& context_;
    int64_t image_, row_, column_;
    const uint8_t* x_;
    uint8_t* y_;
    const uint8_t* r_ = nullptr;
};

Job job_of(const Operation& op, const ConvState& state, int64_t number) {
    Job job;
    job.record = &op.record;
    job.type = op.output->type;
    job.finish = finish_of(op, state);
    job.small = state.small;
    job.segments = state.segments.as<Segment>();
    job.segment_count = state.segment_count;
    job.block = state.blocks.as<Block>()[number];
    job.panel = state.panels.as<int8_t>() + number * state.panel_bytes;
    job.start = state.start.as<int32_t>() + number * BLOCK;
    job.scale = state.scale.as<float>() + number * BLOCK;
    job.bias = state.bias.as<float>() + number * BLOCK;
    return job;
}

// Pixels that are worked through with one panel before the next panel is taken.
int64_t sweep(const Operation& op, const ConvState& state) {
    constexpr int64_t most = Pixels::CAPACITY / PIXELS * PIXELS;
    if (state.panels.bytes() > L2_PANELS) return most;
    const int64_t each = PIXELS * op.input[0]->channels * op.record.ints[3];
    int64_t count = L1_INPUT / each * PIXELS;
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
        const int64_t pieces = groups_of_pixels(count);
        for (int64_t b = first; b < last; ++b) {
            const Job job = job_of(op, state, b);
            for (int64_t i = 0; i < pieces; ++i) {
                int64_t from, to;
                piece(count, pieces, i, &from, &to);
                run_block(job, pixels, from, to - from);
            }
        }
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
    piece(groups_of_pixels(pixels), tasks, begin, &low, &unused);
    piece(groups_of_pixels(pixels), tasks, end - 1, &unused, &high);
    const int64_t last = high * PIXELS < pixels ? high * PIXELS : pixels;
    work(op, context, low * PIXELS, last, 0, state.block_count, true);
}

}  // namespace

extern const Kernel conv_kernel = {prepare, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
