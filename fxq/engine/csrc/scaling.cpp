// Depthwise 1 x 1 windows with codes as results. A channel maps 256 codes to codes, whatever its scale and bias: where
// 16-bit whole numbers give all 256 (scaling_fit.h), they take three fifths of the time of float32. The few channels that have
// no such numbers are looked up.
#include "scaling.h"

#include "halo.h"
#include "result.h"
#include "scaling_vector.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t LEAST = 1 << 14;  // bytes of a task
constexpr int64_t STRIP = 32;       // pixels that are worked through with the numbers of a chunk
constexpr int64_t FEW = 16;  // one channel in so many may be looked up

struct Lookup {
    int64_t channel;
    uint8_t table[256];
};

struct ScalingState final : State {
    Buffer chunks, lookups;
    int64_t lookup_count = 0;
};

bool is_plain(const Operation& op) {
    const int32_t* ints = op.record.ints;
    for (int i = 0; i < 8; ++i)
        if (i != 4 && i != 5 && ints[i] != (i < 4 ? 1 : 0)) return false;  // kernel, stride, padding
    return op.output->type == FXQ_U8 && !op.input[1] && ints[9] == FXQ_IDENTITY;
}

// The codes of a channel, as the definition has them.
void fill_table(const Operation& op, int64_t channel, uint8_t (&table)[256]) {
    const F scale = set(op.constant[2].as<float>()[channel]), bias = set(op.constant[3].as<float>()[channel]);
    const Codes codes = codes_of(op.record);
    const int32_t weight = op.constant[0].as<int8_t>()[channel], start = op.constant[1].as<int32_t>()[channel];
    for (int32_t x = 0; x < 256; x += LANES) {
        alignas(64) int32_t sums[LANES];
        for (int32_t i = 0; i < LANES; ++i)
            sums[i] = static_cast<int32_t>(static_cast<uint32_t>(start) + static_cast<uint32_t>((x + i) * weight));
        put_bytes(table + x, codes(fma(to_float(load_int(sums)), scale, bias)));
    }
}

bool fill_state(const Operation& op, ScalingState* state) {
    const int64_t channels = op.output->channels, most = channels / FEW;
    const int64_t bytes = (channels + CHUNK - 1) / CHUNK * static_cast<int64_t>(sizeof(ScalingChunk));
    if (!state->chunks.allocate(bytes)) return false;
    if (!state->lookups.allocate(most * static_cast<int64_t>(sizeof(Lookup)))) return false;
    for (int64_t c = 0; c < channels; ++c) {
        uint8_t table[256];
        fill_table(op, c, table);
        const double slope = double(op.constant[0].as<int8_t>()[c]) * double(op.constant[2].as<float>()[c]);
        Scaling scaling;
        if (fit_scaling(table, slope, op.record.ints[11], op.record.ints[12], &scaling)) {
            state->chunks.as<ScalingChunk>()[c / CHUNK].put(c % CHUNK, scaling);
            continue;
        }
        if (state->lookup_count == most) return false;
        Lookup& lookup = state->lookups.as<Lookup>()[state->lookup_count++];
        lookup.channel = c;
        memcpy(lookup.table, table, sizeof table);
    }
    state->packed_bytes = bytes + state->lookups.bytes();
    return true;
}

// Neighbouring pixels.
template <bool limited>
void scale_pixels(const Operation& op, const uint8_t* x, uint8_t* y, int64_t count) {
    const ScalingState& state = *static_cast<const ScalingState*>(op.state);
    const int64_t x_step = op.input[0]->pixel_pitch, y_step = op.output->pixel_pitch, channels = op.output->channels;
    for (int64_t first = 0; first < channels; first += CHUNK) {
        const Scaler<limited> scaled(state.chunks.as<ScalingChunk>()[first / CHUNK], op.record);
        const Writer<1> write(Places<1>{{0}}, channels - first);
        for (int64_t i = 0; i < count; ++i) write(y + i * y_step + first, scaled(load_bytes(x + i * x_step + first)));
    }
    for (int64_t k = 0; k < state.lookup_count; ++k) {
        const Lookup& lookup = state.lookups.as<Lookup>()[k];
        for (int64_t i = 0; i < count; ++i)
            y[i * y_step + lookup.channel] = lookup.table[x[i * x_step + lookup.channel]];
    }
}

bool rows_touch(const Tensor& tensor, int64_t width) { return tensor.row_pitch == width * tensor.pixel_pitch; }

// Pixels of a line: of an image where its rows touch each other in input and output, else of a row.
int64_t line_of(const Operation& op) {
    const Tensor& y = *op.output;
    const bool whole = rows_touch(*op.input[0], y.width) && rows_touch(y, y.width) && !has_halo(y);
    return whole ? int64_t(y.height) * y.width : y.width;
}

// What tasks are made of: pixels of whole images, or rows.
int64_t pieces_of(const Operation& op, int64_t images) {
    const int64_t pixels = images * op.output->height * op.output->width;
    return line_of(op) > op.output->width ? pixels : pixels / op.output->width;
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const int64_t pieces = pieces_of(op, images);
    const int64_t bytes = images * op.output->height * op.output->width * op.output->channels;
    return split(pieces, bytes / pieces, LEAST, threads);
}

void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const Tensor &x = *op.input[0], &y = *op.output;
    const int64_t pieces = pieces_of(op, context.images), line = line_of(op), lines = int64_t(y.height) * y.width / line;
    const int64_t each = line > y.width ? 1 : y.width;  // pixels of a piece
    const bool limited = op.record.ints[11] > 0 || op.record.ints[12] < 255;
    int64_t low, high, unused;
    piece(pieces, tasks, begin, &low, &unused);
    piece(pieces, tasks, end - 1, &unused, &high);
    for (int64_t pixel = low * each; pixel < high * each;) {
        const int64_t number = pixel / line, column = pixel % line, n = number / lines, row = number % lines;
        const int64_t left = line - column < high * each - pixel ? line - column : high * each - pixel;
        const int64_t count = left < STRIP ? left : STRIP;
        uint8_t* const image = address(context, y, n);
        const auto scale = limited ? scale_pixels<true> : scale_pixels<false>;
        scale(op, address(context, x, n) + row * x.row_pitch + column * x.pixel_pitch,
              image + row * y.row_pitch + column * y.pixel_pitch, count);
        pixel += count;
        if (has_halo(y) && column + count == line) write_halo(y, image, row, row + 1);
    }
}

}  // namespace

State* scaling_state(const Operation& op) {
    if (!is_plain(op) || op.output->channels < CHUNK / 2) return nullptr;
    return filled_by(fill_state, op);
}

extern const Kernel scaling_kernel = {nullptr, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
