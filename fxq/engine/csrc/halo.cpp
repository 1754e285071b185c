#include "halo.h"

#include <string.h>

namespace fxq {
namespace {

void fill_pixels(const Tensor& tensor, uint8_t* pixel, int64_t count) {
    const int64_t channels = tensor.channels;
    if (count <= 0) return;
    if (tensor.type == FXQ_U8 && tensor.channel_pitch == 1) {
        if (tensor.pixel_pitch == channels) {
            memset(pixel, tensor.fill, static_cast<size_t>(channels * count));
            return;
        }
        for (int64_t i = 0; i < count; ++i)
            memset(pixel + i * tensor.pixel_pitch, tensor.fill, static_cast<size_t>(channels));
        return;
    }
    const float real = static_cast<float>(tensor.fill);
    for (int64_t i = 0; i < count; ++i) {
        for (int64_t c = 0; c < channels; ++c) {
            uint8_t* element = pixel + i * tensor.pixel_pitch + c * tensor.channel_pitch;
            if (tensor.type == FXQ_U8)
                *element = static_cast<uint8_t>(tensor.fill);
            else
                memcpy(element, &real, sizeof real);
        }
    }
}

void fill_row(const Tensor& tensor, uint8_t* row) {
    fill_pixels(tensor, row - tensor.left * tensor.pixel_pitch, tensor.left + tensor.width + tensor.right);
}

}  // namespace

void write_halo(const Tensor& tensor, uint8_t* image, int64_t y_begin, int64_t y_end) {
    if (!has_halo(tensor) || y_begin >= y_end) return;
    if (y_begin == 0)
        for (int64_t y = -tensor.top; y < 0; ++y) fill_row(tensor, image + y * tensor.row_pitch);
    if (tensor.left | tensor.right) {
        for (int64_t y = y_begin; y < y_end; ++y) {
            uint8_t* row = image + y * tensor.row_pitch;
            fill_pixels(tensor, row - tensor.left * tensor.pixel_pitch, tensor.left);
            fill_pixels(tensor, row + tensor.width * tensor.pixel_pitch, tensor.right);
        }
    }
    if (y_end == tensor.height)
        for (int64_t y = tensor.height; y < tensor.height + tensor.bottom; ++y)
            fill_row(tensor, image + y * tensor.row_pitch);
}

}  // namespace fxq
