// LOAD: the caller's tensor to the arena. STORE: the arena to the caller's tensor.
//
// Three ways through a row: channels side by side (runs), pixels side by side (planes: four channels of LANES pixels
// are turned around in registers, as bytes of s32 words), anything else (gathered).
#include "bytes.h"
#include "finish.h"
#include "rows.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t LEAST = 16384;  // elements of a task
constexpr int64_t BLOCK = 64;     // pixels whose channels are turned around before the next ones

int64_t tasks(const Operation& op, int64_t images, int threads) {
    return split(images * op.output->height, int64_t(op.output->width) * op.output->channels, LEAST, threads);
}

// Four codes of LANES pixels each, one a channel, as words.
struct Words {
    I word = set_int(0);
    void put(int channel, I code) { word = either(word, shift_left(code, 8 * channel)); }
};

// Writes the words of `count` pixels, `bytes` of each.
void put_words(I words, uint8_t* to, int64_t pixel_pitch, int64_t bytes, int64_t count) {
    alignas(64) int32_t all[LANES];
    store_int(all, words);
    if (pixel_pitch == 4 && bytes == 4 && count == LANES) {
        memcpy(to, all, sizeof all);
        return;
    }
    if (bytes == 4) {
        for (int64_t i = 0; i < count; ++i) memcpy(to + i * pixel_pitch, &all[i], 4);
        return;
    }
    for (int64_t i = 0; i < count; ++i) memcpy(to + i * pixel_pitch, &all[i], static_cast<size_t>(bytes));
}

// Planes to pixels. read(plane, i, n) gives the codes of n pixels from i on. Channels that the planes lack are `fill`.
template <class Read>
void planes_to_codes(const uint8_t* from, int64_t plane_bytes, int64_t planes, const Tensor& y, uint8_t* to,
                     const Read& read) {
    const I fill = set_int(y.fill);
    for (int64_t start = 0; start < y.width; start += BLOCK) {
        const int64_t stop = start + BLOCK < y.width ? start + BLOCK : y.width;
        for (int64_t c = 0; c < y.channels; c += 4) {
            const int64_t bytes = y.channels - c < 4 ? y.channels - c : 4;
            for (int64_t i = start; i < stop; i += LANES) {
                const int64_t n = stop - i < LANES ? stop - i : LANES;
                Words words;
                for (int k = 0; k < bytes; ++k)
                    words.put(k, c + k < planes ? read(from + (c + k) * plane_bytes, i, n) : fill);
                put_words(words.word, to + i * y.pixel_pitch + c, y.pixel_pitch, bytes, n);
            }
        }
    }
}

// Channels that the input lacks, element by element.
void fill_channels(const Tensor& x, const Tensor& y, uint8_t* to) {
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

// Dense pixels of up to four channels to pixels of four: quantised together, then spread as words.
void spread_row(const float* from, int64_t width, int64_t channels, const Finish& finish, uint8_t* to, int64_t pitch,
                int32_t fill) {
    constexpr int64_t pixels = 128;
    uint8_t codes[pixels * 4 + 4] = {};
    const int shift = 8 * static_cast<int>(channels);
    const uint64_t kept = (uint64_t(1) << shift) - 1;
    const uint64_t filled = uint64_t(0x01010101u * static_cast<uint32_t>(fill)) & ~kept;
    for (int64_t start = 0; start < width; start += pixels) {
        const int64_t count = width - start < pixels ? width - start : pixels;
        finish(NumberSource{from + start * channels}, codes, count * channels);
        for (int64_t i = 0; i < count; ++i, to += pitch) {
            uint32_t word;
            memcpy(&word, codes + i * channels, 4);
            word = static_cast<uint32_t>((word & kept) | filled);
            memcpy(to, &word, 4);
        }
    }
}

void load_row(const Operation& op, const uint8_t* from, const Pitches& x, uint8_t* to) {
    const Tensor& y = *op.output;
    const int64_t channels = op.input[0]->channels;
    const bool quantised = x.size == 4 && y.size == 1;
    const Codes codes(op.record.ints[0], 0, 255);
    const F inverse = set(op.record.floats[0]);
    const bool planes = x.pixel == x.size && x.channel != x.size && y.size == 1 && y.channel_pitch == 1;
    if (planes && quantised) {
        return planes_to_codes(from, x.channel, channels, y, to, [&](const uint8_t* plane, int64_t i, int64_t n) {
            const NumberSource source{reinterpret_cast<const float*>(plane)};
            return codes(mul(n == LANES ? source.full(i) : source.part(i, n), inverse));
        });
    }
    if (planes) {
        return planes_to_codes(from, x.channel, channels, y, to, [](const uint8_t* plane, int64_t i, int64_t n) {
            return n == LANES ? bytes(plane + i) : bytes_partial(plane + i, n);
        });
    }
    const Finish finish(true, op.record.floats[0], codes);
    if (quantised && y.channels == 4 && y.channel_pitch == 1 && dense_row(x, y.width, channels))
        return spread_row(reinterpret_cast<const float*>(from), y.width, channels, finish, to, y.pixel_pitch, y.fill);
    // The rows of `dense_runs` are as wide as the input's channels; the output's pitch may hold more.
    dense_runs(from, x, to, pitches(y), y.width, channels, [&](const uint8_t* in, uint8_t* out, int64_t count) {
        if (quantised)
            finish(NumberSource{reinterpret_cast<const float*>(in)}, out, count);
        else
            copy_bytes(out, in, count * y.size);
    });
    if (y.channels > channels) fill_channels(*op.input[0], y, to);
}

void load_values(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const Tensor &x = *op.input[0], &y = *op.output;
    const int64_t* strides = context.inputs[x.index].strides;
    const Pitches from{strides[2], strides[3], x.size};
    each_row(context.images, y.height, tasks, begin, end, [&](int64_t n, int64_t row) {
        uint8_t* image = address(context, y, n);
        load_row(op, input_address(context, x, n) + row * strides[1], from, image + row * y.row_pitch);
        write_halo(y, image, row, row + 1);
    });
}

// Words of LANES pixels, `bytes` of each; the others are zero.
I get_words(const uint8_t* from, int64_t pixel_pitch, int64_t bytes, int64_t count) {
    alignas(64) int32_t all[LANES] = {};
    if (bytes == 4) {
        for (int64_t i = 0; i < count; ++i) memcpy(&all[i], from + i * pixel_pitch, 4);
    } else {
        for (int64_t i = 0; i < count; ++i) memcpy(&all[i], from + i * pixel_pitch, static_cast<size_t>(bytes));
    }
    return load_int(all);
}

// Codes to planes of real values.
void codes_to_planes(const uint8_t* from, const Pitches& x, uint8_t* to, int64_t plane_bytes, int64_t width,
                     int64_t channels, F zero, F scale) {
    const I low = set_int(255);
    for (int64_t start = 0; start < width; start += BLOCK) {
        const int64_t stop = start + BLOCK < width ? start + BLOCK : width;
        for (int64_t c = 0; c < channels; c += 4) {
            const int64_t bytes = channels - c < 4 ? channels - c : 4;
            for (int64_t i = start; i < stop; i += LANES) {
                const int64_t n = stop - i < LANES ? stop - i : LANES;
                I words = get_words(from + i * x.pixel + c, x.pixel, bytes, n);
                for (int64_t k = 0; k < bytes; ++k, words = shift_right(words, 8)) {
                    float* plane = reinterpret_cast<float*>(to + (c + k) * plane_bytes) + i;
                    const F v = mul(sub(to_float(both(words, low)), zero), scale);
                    if (n == LANES)
                        store(plane, v);
                    else
                        store_partial(plane, v, n);
                }
            }
        }
    }
}

void store_values(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const Tensor &x = *op.input[0], &y = *op.output;
    const bool real = x.type != y.type;
    const Finish finish(false, 1.0f, Codes(0, 0, 255));
    const F zero = set(static_cast<float>(op.record.ints[0])), scale = set(op.record.floats[0]);
    const bool planes = real && y.pixel_pitch == 4 && x.channel_pitch == 1 && y.channels > 1 && y.width > 1;
    each_row(context.images, y.height, tasks, begin, end, [&](int64_t n, int64_t row) {
        const uint8_t* from = address(context, x, n) + row * x.row_pitch;
        uint8_t* to = address(context, y, n) + row * y.row_pitch;
        if (planes)
            return codes_to_planes(from, pitches(x), to, y.channel_pitch, y.width, y.channels, zero, scale);
        dense_runs(from, pitches(x), to, pitches(y), y.width, y.channels,
                   [&](const uint8_t* in, uint8_t* out, int64_t count) {
                       if (real)
                           finish(CodeSource{in, zero, scale}, out, count);
                       else
                           copy_bytes(out, in, count * y.size);
                   });
    });
}

}  // namespace

extern const Kernel load_kernel = {nullptr, tasks, load_values};
extern const Kernel store_kernel = {nullptr, tasks, store_values};

}  // namespace FXQ_NS
}  // namespace fxq
