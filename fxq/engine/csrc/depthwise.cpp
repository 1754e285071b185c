// The depthwise convolution: vectors over channels, four taps at a time.
//
// Windows of 1 x 1, 3 x 3 and 5 x 5 taps go column by column (depthwise_columns.h), others output by output.
#include <new>

#include "depthwise_columns.h"
#include "parts_row.h"
#include "scaling.h"

namespace fxq {
namespace FXQ_NS {
namespace {

struct DepthwiseState final : PartsState {
    Buffer weights;     // [chunk][four taps][part][lane][4], zero where there is no tap or channel
    Buffer offsets;     // of each tap from the window's first, a multiple of four
    int64_t quads = 0;  // groups of four taps
    int columns = 0;    // the side of a window that goes column by column, else 0
    int64_t least = 1;  // outputs that a row (or a segment of one) needs at least for that
};

const DepthwiseState& state_of(const Operation& op) { return *static_cast<const DepthwiseState*>(op.state); }

int64_t taps_of(const Operation& op) { return int64_t(op.record.ints[0]) * op.record.ints[1]; }

int side_by_columns(const Operation& op) {
    const int32_t* ints = op.record.ints;
    const int side = ints[0];
    if (ints[1] != side || ints[5] != 1) return 0;
    if (side == 1) return ints[3] == 1 ? 1 : 0;
    const bool five = side == 5 && LANES == 16;  // takes more registers than AVX2 has
    return (side == 3 || five) && (ints[3] == 1 || ints[3] == 2) ? side : 0;
}

// The tap at `place` of the packed weights, -1 where there is none. By columns: four rows of each, then a fifth row.
int64_t tap_at(const Operation& op, const DepthwiseState& state, int64_t place) {
    const int64_t side = state.columns;
    if (place >= 4 * side) return place < taps_of(op) ? place : -1;
    return place % 4 < side ? place % 4 * side + place / 4 : -1;
}

bool pack(const Operation& op, DepthwiseState* state) {
    const int64_t channels = op.output->channels, room = (channels + CHUNK - 1) / CHUNK * CHUNK, taps = taps_of(op);
    state->quads = state->columns == 3 ? 3 : (taps + 3) / 4;
    if (!state->weights.allocate(room * state->quads * 4) || !state->offsets.allocate(state->quads * 4 * 8)) return false;
    each_lane(channels, [&](int64_t first, int64_t part, int64_t lane, int64_t c) {
        int8_t* w = state->weights.as<int8_t>() + (first * state->quads + part * LANES + lane) * 4;
        for (int64_t place = 0; place < state->quads * 4; ++place) {
            const int64_t tap = tap_at(op, *state, place);
            if (tap >= 0) w[place / 4 * CHUNK * 4 + place % 4] = op.constant[0].as<int8_t>()[c * taps + tap];
        }
    });
    const int32_t* ints = op.record.ints;
    int64_t* offset = state->offsets.as<int64_t>();  // taps that do not exist read the first one, times zero
    for (int64_t place = 0; place < state->quads * 4; ++place) {
        const int64_t tap = tap_at(op, *state, place);
        if (tap >= 0)
            offset[place] = tap / ints[1] * ints[4] * op.input[0]->row_pitch +
                            tap % ints[1] * ints[5] * op.input[0]->pixel_pitch;
    }
    return true;
}

const char* prepare(Operation& op) {
    if (State* own = scaling_state(op)) {
        op.state = own;
        op.kernel = &scaling_kernel;
        return nullptr;
    }
    DepthwiseState* state = new (std::nothrow) DepthwiseState;
    op.state = state;
    if (!state || !prepare_parts(op, state)) return "out of memory";
    state->columns = side_by_columns(op);
    if (state->columns > 1) state->least = (state->columns - 1) / op.record.ints[3];
    if (!pack(op, state)) return "out of memory";
    state->packed_bytes = state->weights.bytes();
    return nullptr;
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const int64_t line = int64_t(op.output->width) * op.output->channels * (taps_of(op) + 8);  // 8: the epilogue
    return split(images * op.output->height, line, 100000, threads);
}

const int8_t* weights_of(const Row& row) {
    return state_of(row.op).weights.as<int8_t>() + row.first * state_of(row.op).quads * 4;
}

// Sums of `width` outputs from number `begin` on, output by output.
void sums_by_outputs(const Row& row, int64_t begin, int64_t width) {
    const DepthwiseState& state = state_of(row.op);
    const Places<1> all{{0}};
    const uint8_t* x = row.x + begin * row.x_step();
    for (int64_t i = 0; i < width; ++i, x += row.x_step()) {
        const int64_t* offset = state.offsets.as<int64_t>();
        const int8_t* w = weights_of(row);
        Parts sum = load_parts(row.start());
        for (int64_t q = 0; q < state.quads; ++q, offset += 4, w += CHUNK * 4) {
            const auto tap = [&](int k) { return load_places(x + offset[k], all); };
            dot_parts(&sum, turn(tap(0), tap(1), tap(2), tap(3)), load_weight_parts(w));
        }
        store_parts(row.sums + i * CHUNK, sum);
    }
}

template <int side, int step>
struct Window {};

// Calls body(Window of the row's type).
template <class Body>
void with_window(const Row& row, const Body& body) {
    const bool second = row.op.record.ints[3] == 2;
    const int columns = state_of(row.op).columns;
    if (columns == 1) return body(Window<1, 1>());
    if (columns == 3 && !second) return body(Window<3, 1>());
    if (columns == 3) return body(Window<3, 2>());
    if (!second) return body(Window<5, 1>());
    return body(Window<5, 2>());
}

Taps taps_of(const Row& row, const uint8_t* x) {
    return {x, row.op.record.ints[4] * row.op.input[0]->row_pitch, row.op.input[0]->pixel_pitch, weights_of(row),
            row.start()};
}

// Sums of `width` outputs of each segment from x on, to memory. A function for each window: g++ keeps fewer sums in
// registers in one for all.
template <int side, int step, int segments>
__attribute__((noinline)) void column_sums(const Row& row, Window<side, step>, const uint8_t* x, int64_t width,
                                           const Places<segments>& in) {
    int32_t* sums = row.sums;
    Columns<side, step, segments>(taps_of(row, x), in).run(width, [&](const Parts& sum) __attribute__((always_inline)) {
        store_parts(sums, sum);
        sums += CHUNK;
    });
}

// Straight to codes: where the epilogue is short.
template <int side, int step, int segments>
__attribute__((noinline)) void column_codes(const Row& row, Window<side, step>, const uint8_t* x, uint8_t* y,
                                            int64_t width, const Cut<segments>& cut) {
    const PartsFinish<FXQ_IDENTITY, false> finish(row.op.record, row.factors());
    const Writer<segments> write(cut.out, row.channels);
    const int64_t pitch = row.y_step();
    Columns<side, step, segments>(taps_of(row, x), cut.in)
        .run(width, [&](const Parts& sums) __attribute__((always_inline)) {
            write(y, finish(sums));
            y += pitch;
        });
}

void row_by_columns(const Row& row) {
    const int32_t function = row.op.record.ints[9];
    with_cut(row, state_of(row.op).least, [&](const auto& cut) {
        cut.each_strip(row, [&](const uint8_t* x, uint8_t* y, int64_t width) {
            with_window(row, [&](auto window) {
                if (function == FXQ_IDENTITY && row.state().bounded) return column_codes(row, window, x, y, width, cut);
                column_sums(row, window, x, width, cut.in);
                finish_strip(row, y, width, cut.out);
            });
        });
    });
}

void row_by_outputs(const Row& row) {
    const int64_t width = row.op.output->width;
    for (int64_t begin = 0; begin < width; begin += STRIP) {
        const int64_t count = width - begin < STRIP ? width - begin : STRIP;
        sums_by_outputs(row, begin, count);
        if (row.plain())
            finish_strip(row, row.y + row.first + begin * row.y_step(), count, Places<1>{{0}});
        else
            finish_any_strip(row, begin, count);
    }
}

void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    each_parts_row(op, context, tasks, begin, end, [](const Row& row) {
        const bool by_columns = state_of(row.op).columns && row.op.output->width >= state_of(row.op).least;
        row.plain() && by_columns ? row_by_columns(row) : row_by_outputs(row);
    });
}

}  // namespace

extern const Kernel depthwise_kernel = {prepare, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
