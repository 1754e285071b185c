// Depthwise 1 x 1 windows with codes as results. A channel maps 256 codes to codes, whatever its scale and bias: where
// 16-bit whole numbers give all 256 (scaling_fit.h), they take half of the time of float32. The few channels that have no
// such numbers are looked up.
#include "scaling.h"

#include <new>

#include "halo.h"
#include "parts_vector.h"
#include "result.h"
#include "scaling_fit.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t LEAST = 1 << 14;  // bytes of a task
constexpr int64_t STRIP = 32;       // pixels that are worked through with the numbers of a chunk
constexpr int64_t HALF = CHUNK / 2;
constexpr int64_t FEW = 16;  // one channel in so many may be looked up

struct Lookup {
    int64_t channel;
    uint8_t table[256];
};

struct ScalingState final : State {
    Buffer flip, rest;                    // bytes, [channel]
    Buffer factor, plus, minus, divisor;  // words, [chunk][half][lane]: as a chunk's bytes are unpacked
    Buffer lookups;
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

// Where a channel's words stand: bytes are unpacked to words in each 128-bit lane, first its lower eight.
int64_t word_of(int64_t channel) {
    const int64_t byte = channel % CHUNK;
    return channel - byte + byte % 16 / 8 * HALF + byte / 16 * 8 + byte % 8;
}

void put(const Scaling& scaling, int64_t channel, ScalingState* state) {
    state->flip.as<uint8_t>()[channel] = scaling.flip;
    state->rest.as<uint8_t>()[channel] = scaling.rest;
    state->factor.as<uint16_t>()[word_of(channel)] = scaling.factor;
    state->plus.as<uint16_t>()[word_of(channel)] = scaling.plus;
    state->minus.as<uint16_t>()[word_of(channel)] = scaling.minus;
    state->divisor.as<uint16_t>()[word_of(channel)] = static_cast<uint16_t>(1 << (16 - scaling.shift));
}

bool fill_state(const Operation& op, ScalingState* state) {
    const int64_t channels = op.output->channels, room = (channels + CHUNK - 1) / CHUNK * CHUNK, most = channels / FEW;
    Buffer* const buffers[6] = {&state->flip, &state->rest, &state->factor, &state->plus, &state->minus, &state->divisor};
    for (int i = 0; i < 6; ++i)
        if (!buffers[i]->allocate(i < 2 ? room : 2 * room)) return false;
    if (!state->lookups.allocate(most * static_cast<int64_t>(sizeof(Lookup)))) return false;
    for (int64_t c = 0; c < channels; ++c) {
        uint8_t table[256];
        fill_table(op, c, table);
        const double slope = double(op.constant[0].as<int8_t>()[c]) * double(op.constant[2].as<float>()[c]);
        Scaling scaling;
        if (fit_scaling(table, slope, op.record.ints[11], op.record.ints[12], &scaling)) {
            put(scaling, c, state);
            continue;
        }
        if (state->lookup_count == most) return false;
        Lookup& lookup = state->lookups.as<Lookup>()[state->lookup_count++];
        lookup.channel = c;
        memcpy(lookup.table, table, sizeof table);
    }
    state->packed_bytes = room * 10 + state->lookups.bytes();
    return true;
}

#if defined(FXQ_AVX512VNNI)
FXQ_INLINE I low_half(I low, I high) { return _mm512_unpacklo_epi8(low, high); }
FXQ_INLINE I high_half(I low, I high) { return _mm512_unpackhi_epi8(low, high); }
FXQ_INLINE I pack_halves(I a, I b) { return _mm512_packus_epi16(a, b); }
FXQ_INLINE I product(I a, I b) { return _mm512_mulhi_epu16(a, b); }
FXQ_INLINE I bounded_sum(I a, I b) { return _mm512_adds_epu16(a, b); }
FXQ_INLINE I bounded_difference(I a, I b) { return _mm512_subs_epu16(a, b); }
FXQ_INLINE I flipped(I a, I b) { return _mm512_xor_si512(a, b); }
#else
FXQ_INLINE I low_half(I low, I high) { return _mm256_unpacklo_epi8(low, high); }
FXQ_INLINE I high_half(I low, I high) { return _mm256_unpackhi_epi8(low, high); }
FXQ_INLINE I pack_halves(I a, I b) { return _mm256_packus_epi16(a, b); }
FXQ_INLINE I product(I a, I b) { return _mm256_mulhi_epu16(a, b); }
FXQ_INLINE I bounded_sum(I a, I b) { return _mm256_adds_epu16(a, b); }
FXQ_INLINE I bounded_difference(I a, I b) { return _mm256_subs_epu16(a, b); }
FXQ_INLINE I flipped(I a, I b) { return _mm256_xor_si256(a, b); }
#endif

// The numbers of a chunk, in registers.
class Scaler {
   public:
    Scaler(const Operation& op, int64_t first)
        : state_(*static_cast<const ScalingState*>(op.state)),
          flip_(load_bytes(state_.flip.as<uint8_t>() + first)),
          rest_(load_bytes(state_.rest.as<uint8_t>() + first)),
          low_(state_, first),
          high_(state_, first + HALF),
          lowest_(set_bytes(op.record.ints[11])),
          highest_(set_bytes(op.record.ints[12])) {}

    FXQ_INLINE I operator()(I x) const {
        const I w = flipped(x, flip_);
        const I codes = pack_halves(low_(low_half(rest_, w)), high_(high_half(rest_, w)));
        return larger(smaller(codes, highest_), lowest_);
    }

   private:
    struct Half {
        I factor, plus, minus, divisor;
        Half(const ScalingState& state, int64_t first)
            : factor(words_at(state.factor, first)),
              plus(words_at(state.plus, first)),
              minus(words_at(state.minus, first)),
              divisor(words_at(state.divisor, first)) {}
        static I words_at(const Buffer& words, int64_t first) { return load_bytes(words.as<uint8_t>() + first * 2); }
        FXQ_INLINE I operator()(I x) const {
            return product(bounded_difference(bounded_sum(product(x, factor), plus), minus), divisor);
        }
    };

    const ScalingState& state_;
    const I flip_, rest_;
    const Half low_, high_;
    const I lowest_, highest_;
};

// Neighbouring pixels.
void scale_pixels(const Operation& op, const uint8_t* x, uint8_t* y, int64_t count) {
    const ScalingState& state = *static_cast<const ScalingState*>(op.state);
    const int64_t x_step = op.input[0]->pixel_pitch, y_step = op.output->pixel_pitch, channels = op.output->channels;
    for (int64_t first = 0; first < channels; first += CHUNK) {
        const Scaler scaled(op, first);
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
    int64_t low, high, unused;
    piece(pieces, tasks, begin, &low, &unused);
    piece(pieces, tasks, end - 1, &unused, &high);
    for (int64_t pixel = low * each; pixel < high * each;) {
        const int64_t number = pixel / line, column = pixel % line, n = number / lines, row = number % lines;
        const int64_t left = line - column < high * each - pixel ? line - column : high * each - pixel;
        const int64_t count = left < STRIP ? left : STRIP;
        uint8_t* const image = address(context, y, n);
        scale_pixels(op, address(context, x, n) + row * x.row_pitch + column * x.pixel_pitch,
                     image + row * y.row_pitch + column * y.pixel_pitch, count);
        pixel += count;
        if (has_halo(y) && column + count == line) write_halo(y, image, row, row + 1);
    }
}

}  // namespace

State* scaling_state(const Operation& op) {
    if (!is_plain(op) || op.output->channels < HALF) return nullptr;
    ScalingState* state = new (std::nothrow) ScalingState;
    if (state && fill_state(op, state)) return state;
    delete state;
    return nullptr;
}

extern const Kernel scaling_kernel = {nullptr, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
