// What the convolutions share: the walk over the output's pixels, and the job of a block of channels.
#ifndef FXQ_CONV_WALK_H
#define FXQ_CONV_WALK_H

#include "conv_job.h"
#include "halo.h"

namespace fxq {
namespace FXQ_NS {

inline Finish finish_of(const Operation& op, const ConvState& state) {
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

inline Job job_of(const Operation& op, const ConvState& state, int64_t number) {
    Job job;
    job.record = &op.record;
    job.type = op.output->type;
    job.finish = finish_of(op, state);
    job.small = state.small;
    job.bounded = state.bounded;
    job.segments = state.segments.as<Segment>();
    job.segment_count = state.segment_count;
    job.steps = state.panel_bytes / (4 * BLOCK);
    job.block = state.blocks.as<Block>()[number];
    job.panel = state.panels.as<int8_t>() + number * state.panel_bytes;
    job.start = state.start.as<int32_t>() + number * BLOCK;
    job.scale = state.scale.as<float>() + number * BLOCK;
    job.bias = state.bias.as<float>() + number * BLOCK;
    return job;
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
