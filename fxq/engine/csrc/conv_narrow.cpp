// Convolutions in groups of 4 or 8 channels that give as many: a chunk of input channels holds all that a chunk of output
// channels reads.
//
// A sum holds the products of the four bytes of its lane with the weights of output number k of their group; k sums make
// up all outputs of the chunk, and are turned around at the end.
#include "conv_narrow.h"

#include <new>
#include <utility>

#include "parts_row.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t LEAST = 250000;  // products of a task

struct NarrowState final : PartsState {
    Buffer weights;  // [chunk][tap][output of a group][lane][4]
    Buffer offsets;  // of each tap from the window's first
    int64_t taps = 0, width = 0;  // channels of a group
};

bool pack(const Operation& op, NarrowState* state) {
    const int32_t* ints = op.record.ints;
    const int64_t channels = op.output->channels, room = (channels + CHUNK - 1) / CHUNK * CHUNK;
    const int64_t taps = int64_t(ints[0]) * ints[1], width = channels / ints[8];
    state->taps = taps, state->width = width;
    if (!state->weights.allocate(room * taps * width) || !state->offsets.allocate(taps * 8)) return false;
    for (int64_t first = 0; first < channels; first += CHUNK) {
        const int64_t period = CHUNK / most_segments(channels - first);
        int8_t* const chunk = state->weights.as<int8_t>() + first * taps * width;
        for (int64_t byte = 0; byte < CHUNK; ++byte) {
            const int64_t c = first + byte % period;  // the input channel that stands there
            if (c >= channels) continue;
            for (int64_t tap = 0; tap < taps; ++tap)
                for (int64_t k = 0; k < width; ++k)
                    chunk[(tap * width + k) * CHUNK + byte] =
                        op.constant[0].as<int8_t>()[((c / width * width + k) * taps + tap) * width + c % width];
        }
    }
    for (int64_t tap = 0; tap < taps; ++tap)
        state->offsets.as<int64_t>()[tap] = tap / ints[1] * ints[4] * op.input[0]->row_pitch +
                                            tap % ints[1] * ints[5] * op.input[0]->pixel_pitch;
    return true;
}

// Four sums k .. k + 3: column i of each 128-bit lane becomes part i.
FXQ_INLINE Parts turn_sums(I a, I b, I c, I d) {
    const I ab = low_words(a, b), AB = high_words(a, b), cd = low_words(c, d), CD = high_words(c, d);
    return {low_pairs(ab, cd), high_pairs(ab, cd), low_pairs(AB, CD), high_pairs(AB, CD)};
}

template <int width>
struct Sums {
    I of[width];

    FXQ_INLINE Parts parts() const {
        const Parts first = turn_sums(of[0], of[1], of[2], of[3]);
        if constexpr (width == 4) return first;
        const Parts second = turn_sums(of[4], of[5], of[6], of[7]);  // of outputs 4 .. 7 of the same two groups
        return {add(first.a, first.b), add(second.a, second.b), add(first.c, first.d), add(second.c, second.d)};
    }
};

// Sums of `pixels` outputs of each segment from x on.
template <int width, int pixels, int segments, int... k>
void narrow_sums(const Row& row, const uint8_t* x, const Places<segments>& in, int32_t* to,
                        std::integer_sequence<int, k...>) {
    const NarrowState& state = *static_cast<const NarrowState*>(row.op.state);
    const int8_t* w = state.weights.as<int8_t>() + row.first * state.taps * width;
    const I zero = set_int(0);
    Sums<width> a{{(static_cast<void>(k), zero)...}}, b = a, c = a;
    const uint8_t *const x1 = x + (pixels > 1 ? row.x_step() : 0), *const x2 = x1 + (pixels > 2 ? row.x_step() : 0);
    for (int64_t tap = 0; tap < state.taps; ++tap, w += width * CHUNK) {
        const int64_t offset = state.offsets.as<int64_t>()[tap];
        const I at0 = load_places(x + offset, in);
        const I at1 = pixels > 1 ? load_places(x1 + offset, in) : at0;
        const I at2 = pixels > 2 ? load_places(x2 + offset, in) : at0;
        const auto output = [&](I* sum0, I* sum1, I* sum2, int number) {
            const I weights = load_weights(w + number * CHUNK);
            add_dot(sum0, at0, weights);
            if (pixels > 1) add_dot(sum1, at1, weights);
            if (pixels > 2) add_dot(sum2, at2, weights);
        };
        (output(&a.of[k], &b.of[k], &c.of[k], k), ...);
    }
    const Parts start = load_parts(row.start());
    store_parts(to, add(a.parts(), start));
    if (pixels > 1) store_parts(to + CHUNK, add(b.parts(), start));
    if (pixels > 2) store_parts(to + 2 * CHUNK, add(c.parts(), start));
}

template <int width, int segments>
void narrow_strip(const Row& row, const uint8_t* x, int64_t count, const Places<segments>& in) {
    const std::make_integer_sequence<int, width> outputs;
    int32_t* to = row.sums;
    constexpr int most = LANES == 16 ? 3 : 1;  // as many as there are registers for
    for (; count >= most; count -= most, x += most * row.x_step(), to += most * CHUNK)
        narrow_sums<width, most>(row, x, in, to, outputs);
    for (; count > 0; --count, x += row.x_step(), to += CHUNK) narrow_sums<width, 1>(row, x, in, to, outputs);
}

void narrow_row(const Row& row) {
    const auto sums = [&](const uint8_t* x, int64_t count, const auto& in) {
        if (static_cast<const NarrowState*>(row.op.state)->width == 4) return narrow_strip<4>(row, x, count, in);
        return narrow_strip<8>(row, x, count, in);
    };
    if (!row.plain()) {
        for (int64_t begin = 0; begin < row.op.output->width; begin += STRIP) {
            const int64_t left = row.op.output->width - begin, count = left < STRIP ? left : STRIP;
            sums(row.x + begin * row.x_step(), count, Places<1>{{0}});
            finish_any_strip(row, begin, count);
        }
        return;
    }
    with_cut(row, 1, [&](const auto& cut) {
        cut.each_strip(row, [&](const uint8_t* x, uint8_t* y, int64_t count) {
            sums(x, count, cut.in);
            finish_strip(row, y, count, cut.out);
        });
    });
}

const char* prepare(Operation& op) {
    NarrowState* state = new (std::nothrow) NarrowState;
    op.state = state;
    if (!state || !prepare_parts(op, state) || !pack(op, state)) return "out of memory";
    state->packed_bytes = state->weights.bytes();
    return nullptr;
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const NarrowState& state = *static_cast<const NarrowState*>(op.state);
    const int64_t line = int64_t(op.output->width) * op.output->channels * state.taps * state.width;
    return split(images * op.output->height, line, LEAST, threads);
}

void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    each_parts_row(op, context, tasks, begin, end, narrow_row);
}

}  // namespace

extern const Kernel narrow_kernel = {prepare, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
