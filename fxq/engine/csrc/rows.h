// Walking over values: rows of the pieces of a task, and the dense runs of elements of a row.
#ifndef FXQ_ROWS_H
#define FXQ_ROWS_H

#include <string.h>

#include "halo.h"
#include "vec.h"

namespace fxq {
namespace FXQ_NS {

// Calls body(n, y) for the rows (of `height` an image) of pieces begin..end-1.
template <class Body>
inline void each_row(int64_t images, int64_t height, int64_t tasks, int64_t begin, int64_t end, const Body& body) {
    int64_t line, last, unused;
    piece(images * height, tasks, begin, &line, &unused);
    piece(images * height, tasks, end - 1, &unused, &last);
    for (; line < last; ++line) body(line / height, line % height);
}

// How the elements of a row lie: bytes between pixels, channels, and of one element.
struct Pitches {
    int64_t pixel, channel, size;
};

inline Pitches pitches(const Tensor& tensor) { return {tensor.pixel_pitch, tensor.channel_pitch, tensor.size}; }

inline bool dense_channels(const Pitches& p, int64_t channels) { return p.channel == p.size || channels == 1; }

inline bool dense_row(const Pitches& p, int64_t width, int64_t channels) {
    return dense_channels(p, channels) && (p.pixel == channels * p.size || width == 1);
}

// Elements `step` bytes apart to or from a dense run.
inline void gather(uint8_t* to, const uint8_t* from, int64_t step, int64_t size, int64_t count) {
    if (size == 1) {
        for (int64_t i = 0; i < count; ++i) to[i] = from[i * step];
    } else {
        for (int64_t i = 0; i < count; ++i) memcpy(to + i * 4, from + i * step, 4);
    }
}

inline void scatter(uint8_t* to, int64_t step, const uint8_t* from, int64_t size, int64_t count) {
    if (size == 1) {
        for (int64_t i = 0; i < count; ++i) to[i * step] = from[i];
    } else {
        for (int64_t i = 0; i < count; ++i) memcpy(to + i * step, from + i * 4, 4);
    }
}

constexpr int64_t CHUNK = 512;  // elements that are gathered at once

// Calls run(from, to, count) with dense runs that make up a row; channels that do not lie side by side are gathered.
template <class Run>
inline void dense_runs(const uint8_t* from, const Pitches& x, uint8_t* to, const Pitches& y, int64_t width,
                       int64_t channels, const Run& run) {
    if (dense_row(x, width, channels) && dense_row(y, width, channels)) return run(from, to, width * channels);
    const bool direct_x = dense_channels(x, channels), direct_y = dense_channels(y, channels);
    alignas(64) uint8_t in[CHUNK * 4], out[CHUNK * 4];
    for (int64_t i = 0; i < width; ++i, from += x.pixel, to += y.pixel) {
        if (direct_x && direct_y) {
            run(from, to, channels);
            continue;
        }
        for (int64_t c = 0; c < channels; c += CHUNK) {
            const int64_t count = channels - c < CHUNK ? channels - c : CHUNK;
            const uint8_t* source = from + c * x.channel;
            uint8_t* target = to + c * y.channel;
            if (!direct_x) gather(in, source, x.channel, x.size, count);
            run(direct_x ? source : in, direct_y ? target : out, count);
            if (!direct_y) scatter(target, y.channel, out, y.size, count);
        }
    }
}

// The rows of an operation with one input: calls run(from, to, count) with their dense runs, and writes the halo.
template <class Run>
inline void each_run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end, const Run& run) {
    const Tensor &x = *op.input[0], &y = *op.output;
    each_row(context.images, y.height, tasks, begin, end, [&](int64_t n, int64_t row) {
        uint8_t* image = address(context, y, n);
        dense_runs(address(context, x, n) + row * x.row_pitch, pitches(x), image + row * y.row_pitch, pitches(y),
                   y.width, y.channels, run);
        write_halo(y, image, row, row + 1);
    });
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
