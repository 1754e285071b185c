// Rows of a layer whose output channels read input channels of the same chunk (depthwise, narrow groups): what they
// prepare beside weights, the walk over rows and chunks, and the epilogue of sums that stand in parts.
#ifndef FXQ_PARTS_ROW_H
#define FXQ_PARTS_ROW_H

#include "conv_job.h"
#include "halo.h"
#include "parts_finish.h"

namespace fxq {
namespace FXQ_NS {

constexpr int64_t STRIP = 56;  // outputs whose sums stand in memory before they are finished

struct PartsState : State {
    Buffer start;                  // [chunk][part][lane]
    Buffer scale, bias;            // [channel], room for a full last chunk
    Buffer part_scale, part_bias;  // as start
    bool bounded = false;
};

// Into how many segments a vector is cut where a chunk has `channels` channels, which then stand in each.
inline int64_t most_segments(int64_t channels) {
    if (MOST_SEGMENTS == 4 && channels <= CHUNK / 4) return 4;
    return channels <= CHUNK / 2 ? 2 : 1;
}

// Calls body(chunk's first channel, part, lane, channel) for every lane that has a channel.
template <class Body>
void each_lane(int64_t channels, const Body& body) {
    for (int64_t first = 0; first < channels; first += CHUNK) {
        const int64_t period = CHUNK / most_segments(channels - first);
        for (int64_t part = 0; part < 4; ++part) {
            for (int64_t lane = 0; lane < LANES; ++lane) {
                const int64_t c = first + channel_of(part, lane) % period;
                if (c < channels) body(first, part, lane, c);
            }
        }
    }
}

inline bool prepare_parts(const Operation& op, PartsState* state) {
    const int64_t channels = op.output->channels, room = (channels + CHUNK - 1) / CHUNK * CHUNK;
    Buffer* const numbers[5] = {&state->start, &state->scale, &state->bias, &state->part_scale, &state->part_bias};
    for (Buffer* buffer : numbers)
        if (!buffer->allocate(room * 4)) return false;
    each_lane(channels, [&](int64_t first, int64_t part, int64_t lane, int64_t c) {
        const int64_t to = first + part * LANES + lane;
        state->start.as<int32_t>()[to] = op.constant[1].as<int32_t>()[c];
        state->part_scale.as<float>()[to] = state->scale.as<float>()[c] = op.constant[2].as<float>()[c];
        state->part_bias.as<float>()[to] = state->bias.as<float>()[c] = op.constant[3].as<float>()[c];
    });
    state->scratch_bytes = STRIP * CHUNK * 4;
    state->bounded = values_bounded(op);
    return true;
}

// One output row of one chunk of channels.
struct Row {
    const Operation& op;
    int64_t first, channels;  // of the chunk
    const uint8_t* x;         // the chunk's first channel of the first window's first tap
    uint8_t* y;               // the first pixel's first channel
    const uint8_t* r;
    int32_t* sums;  // [STRIP][part][lane]

    const PartsState& state() const { return *static_cast<const PartsState*>(op.state); }
    int64_t x_step() const { return op.record.ints[3] * op.input[0]->pixel_pitch; }
    int64_t y_step() const { return op.output->pixel_pitch; }
    const int32_t* start() const { return state().start.as<int32_t>() + first; }
    Factors factors() const {
        return {state().part_scale.as<float>() + first, state().part_bias.as<float>() + first};
    }
    bool plain() const { return op.output->type == FXQ_U8 && !op.input[1]; }  // u8 results without a residual
};

// Calls body(row) for every chunk of the rows of pieces begin..end-1, and writes the halo.
template <class Body>
void each_parts_row(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end,
                    const Body& body) {
    const int32_t* ints = op.record.ints;
    const Tensor &x = *op.input[0], &y = *op.output;
    const Tensor* const residual = op.input[1];
    int64_t line, last, unused;
    piece(context.images * y.height, tasks, begin, &line, &unused);
    piece(context.images * y.height, tasks, end - 1, &unused, &last);
    for (; line < last; ++line) {
        const int64_t n = line / y.height, row = line % y.height;
        const uint8_t* from = address(context, x, n) + (row * ints[2] - ints[6]) * x.row_pitch - ints[7] * x.pixel_pitch;
        uint8_t* const image = address(context, y, n);
        const uint8_t* r = residual ? address(context, *residual, n) + row * residual->row_pitch : nullptr;
        for (int64_t first = 0; first < y.channels; first += CHUNK) {
            const int64_t left = y.channels - first;
            body(Row{op, first, left < CHUNK ? left : CHUNK, from + first, image + row * y.row_pitch, r,
                     reinterpret_cast<int32_t*>(context.scratch)});
        }
        write_halo(y, image, row, row + 1);
    }
}

// A row cut into segments: where each reads and writes. The last one may repeat outputs of the one before.
template <int segments>
struct Cut {
    int64_t width;  // of each segment
    Places<segments> in, out;

    explicit Cut(const Row& row) : width((row.op.output->width + segments - 1) / segments) {
        for (int i = 0; i < segments; ++i) {
            const int64_t begin = i * width < row.op.output->width - width ? i * width : row.op.output->width - width;
            in.at[i] = begin * row.x_step();
            out.at[i] = begin * row.y_step();
        }
    }

    // Calls body(x, y, width) for strips of all segments at once.
    template <class Body>
    void each_strip(const Row& row, const Body& body) const {
        const int64_t strips = width <= STRIP ? 1 : (width + STRIP - 1) / STRIP;
        for (int64_t i = 0; i < strips; ++i) {
            int64_t begin = 0, end = width;
            if (strips > 1) piece(width, strips, i, &begin, &end);  // divides, which takes as long as a short row
            body(row.x + begin * row.x_step(), row.y + row.first + begin * row.y_step(), end - begin);
        }
    }
};

// Calls body(Cut) with as many segments as the chunk allows, but none of less than `least` outputs.
template <class Body>
void with_cut(const Row& row, int64_t least, const Body& body) {
    const int64_t most = most_segments(row.channels), width = row.op.output->width;
    if constexpr (MOST_SEGMENTS == 4)
        if (most == 4 && (width + 3) / 4 >= least) return body(Cut<4>(row));
    if (most >= 2 && (width + 1) / 2 >= least) return body(Cut<2>(row));
    return body(Cut<1>(row));
}

template <int function, bool clamps, int segments>
void finish_parts(const Row& row, uint8_t* y, int64_t width, const Places<segments>& out) {
    const PartsFinish<function, clamps> finish(row.op.record, row.factors());
    const Writer<segments> write(out, row.channels);
    const int64_t step = row.y_step();
    for (int64_t i = 0; i < width; ++i, y += step) write(y, finish(load_parts(row.sums + i * CHUNK)));
}

// The epilogue of `width` outputs of each segment whose sums stand in row.sums: u8 results without a residual.
template <int segments>
void finish_strip(const Row& row, uint8_t* y, int64_t width, const Places<segments>& out) {
    with_function(row.op.record.ints[9], [&](auto tag) {
        if (row.state().bounded) return finish_parts<decltype(tag)::value, false>(row, y, width, out);
        finish_parts<decltype(tag)::value, true>(row, y, width, out);
    });
}

// The epilogue of any layer for outputs begin .. begin + width - 1, whose sums stand in row.sums.
inline void finish_any_strip(const Row& row, int64_t begin, int64_t width) {
    Job job;
    job.record = &row.op.record;
    job.type = row.op.output->type;
    job.block = {static_cast<int32_t>(row.first), static_cast<int32_t>(row.channels), row.first};
    job.scale = row.state().scale.as<float>() + row.first;
    job.bias = row.state().bias.as<float>() + row.first;
    Pixels one;
    alignas(64) int32_t sums[CHUNK];
    for (int64_t i = 0; i < width; ++i) {
        for (int64_t part = 0; part < 4; ++part) put_part(sums, part, load_int(row.sums + i * CHUNK + part * LANES));
        one.y[0] = row.y + (begin + i) * row.y_step();
        one.r[0] = row.r ? row.r + (begin + i) * row.op.input[1]->pixel_pitch : nullptr;
        finish_any(job, one, 0, 1, sums);
    }
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
