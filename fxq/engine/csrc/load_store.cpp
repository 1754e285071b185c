// LOAD: the caller's tensor to the arena. STORE: the arena to the caller's tensor.
#include <string.h>

#include "halo.h"
#include "result.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t LEAST = 16384;  // elements of a task

int64_t load_tasks(const Operation& op, int64_t images, int threads) {
    return split(images * op.output->height, int64_t(op.output->width) * op.output->channels, LEAST, threads);
}

// One row: width x channels elements, each channel with its own stride over the row.
void quantise_row(const Tensor& x, const int64_t* strides, const uint8_t* from, const Tensor& y, uint8_t* to,
                  float inverse, const Codes& codes) {
    for (int64_t c = 0; c < x.channels; ++c) {
        for (int64_t i = 0; i < x.width; ++i) {
            float value;
            memcpy(&value, from + c * strides[3] + i * strides[2], sizeof value);
            const F v = set(value != value ? 0.0f : value * inverse);
            put_bytes_partial(to + i * y.pixel_pitch + c * y.channel_pitch, codes(v), 1);
        }
    }
}

void copy_row(int64_t size, int64_t width, int64_t channels, const uint8_t* from, int64_t from_pixel,
              int64_t from_channel, uint8_t* to, int64_t to_pixel, int64_t to_channel) {
    for (int64_t i = 0; i < width; ++i)
        for (int64_t c = 0; c < channels; ++c)
            memcpy(to + i * to_pixel + c * to_channel, from + i * from_pixel + c * from_channel,
                   static_cast<size_t>(size));
}

// Channels that the input lacks.
void fill_row(const Tensor& x, const Tensor& y, uint8_t* to) {
    const float real = static_cast<float>(y.fill);
    for (int64_t i = 0; i < y.width; ++i) {
        for (int64_t c = x.channels; c < y.channels; ++c) {
            uint8_t* element = to + i * y.pixel_pitch + c * y.channel_pitch;
            if (y.type == FXQ_U8)
                *element = static_cast<uint8_t>(y.fill);
            else
                memcpy(element, &real, sizeof real);
        }
    }
}

void load(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const Tensor &x = *op.input[0], &y = *op.output;
    const int64_t* strides = context.inputs[x.index].strides;
    const Codes codes(op.record.ints[0], 0, 255);
    int64_t line, last, unused;
    piece(context.images * y.height, tasks, begin, &line, &unused);
    piece(context.images * y.height, tasks, end - 1, &unused, &last);
    for (; line < last; ++line) {
        const int64_t n = line / y.height, row = line % y.height;
        const uint8_t* from = input_address(context, x, n) + row * strides[1];
        uint8_t* image = address(context, y, n);
        uint8_t* to = image + row * y.row_pitch;
        if (x.type == FXQ_F32 && y.type == FXQ_U8)
            quantise_row(x, strides, from, y, to, op.record.floats[0], codes);
        else
            copy_row(y.size, x.width, x.channels, from, strides[2], strides[3], to, y.pixel_pitch, y.channel_pitch);
        if (y.channels > x.channels) fill_row(x, y, to);
        write_halo(y, image, row, row + 1);
    }
}

int64_t store_tasks(const Operation& op, int64_t images, int threads) { return load_tasks(op, images, threads); }

void store_values(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const Tensor &x = *op.input[0], &y = *op.output;
    const float scale = op.record.floats[0], zero = static_cast<float>(op.record.ints[0]);
    int64_t line, last, unused;
    piece(context.images * y.height, tasks, begin, &line, &unused);
    piece(context.images * y.height, tasks, end - 1, &unused, &last);
    for (; line < last; ++line) {
        const int64_t n = line / y.height, row = line % y.height;
        const uint8_t* from = address(context, x, n) + row * x.row_pitch;
        uint8_t* to = address(context, y, n) + row * y.row_pitch;
        if (x.type == y.type) {
            copy_row(y.size, y.width, y.channels, from, x.pixel_pitch, x.channel_pitch, to, y.pixel_pitch,
                     y.channel_pitch);
            continue;
        }
        for (int64_t i = 0; i < y.width; ++i) {
            for (int64_t c = 0; c < y.channels; ++c) {
                const float v = (static_cast<float>(from[i * x.pixel_pitch + c * x.channel_pitch]) - zero) * scale;
                memcpy(to + i * y.pixel_pitch + c * y.channel_pitch, &v, sizeof v);
            }
        }
    }
}

}  // namespace

extern const Kernel load_kernel = {nullptr, load_tasks, load};
extern const Kernel store_kernel = {nullptr, store_tasks, store_values};

}  // namespace FXQ_NS
}  // namespace fxq
