// A channel's gate is one of 256 codes, and for each of these the codes of the map go to codes: 16-bit whole numbers that
// give all 256 are found for every gate in advance (scaling_fit.h), and picked channel by channel when its gate is known.
// The few gates that have no such numbers are looked up.
#include "gating.h"

#include "halo.h"
#include "result.h"
#include "scaling_vector.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t CODES = 256;
constexpr int64_t LEAST = 1 << 14;        // bytes of a task
constexpr int64_t LEAST_PIXELS = 128;     // for which picking the numbers of a chunk pays
constexpr int64_t MANY_CHUNKS = 4;        // which are shared by threads, instead of rows
constexpr int64_t MOST_LOOKED_UP = 16;    // gates

struct GatingState final : State {
    Buffer scalings;  // Scaling of each gate
    Buffer exact;     // whether it has one
    Buffer tables;    // [gate][code of the map]
    int map = 0;      // which of the inputs; the other one is the gate
};

bool is_gate(const Operation& op, int number) {
    const Tensor &gate = *op.input[number], &map = *op.input[1 - number], &y = *op.output;
    if (gate.height != 1 || gate.width != 1 || gate.channels != y.channels) return false;
    if (map.height != y.height || map.width != y.width || map.channels != y.channels) return false;
    return gate.type == FXQ_U8 && map.type == FXQ_U8 && gate.channel_pitch == 1 && map.channel_pitch == 1;
}

bool is_gated(const Operation& op) {
    const Tensor& y = *op.output;
    if (op.record.code != FXQ_MUL || y.type != FXQ_U8 || y.channel_pitch != 1 || op.record.ints[9] != FXQ_IDENTITY)
        return false;
    if (y.channels < CHUNK / 2 || int64_t(y.height) * y.width < LEAST_PIXELS) return false;
    return is_gate(op, 0) || is_gate(op, 1);
}

// The codes that a gate makes of the map's, as the definition has them.
void fill_table(const Operation& op, int map, int32_t gate, uint8_t (&table)[CODES]) {
    const fxq_operation& record = op.record;
    const F zero = set(static_cast<float>(record.ints[14 + map])), scale = set(record.floats[map]);
    const F inverse = set(record.floats[2]);
    const float other = (static_cast<float>(gate) - static_cast<float>(record.ints[15 - map])) * record.floats[1 - map];
    const Codes codes = codes_of(record);
    for (int32_t x = 0; x < CODES; x += LANES) {
        alignas(64) int32_t all[LANES];
        for (int32_t i = 0; i < LANES; ++i) all[i] = x + i;
        const F real = mul(sub(to_float(load_int(all)), zero), scale);
        put_bytes(table + x, codes(mul(mul(real, set(other)), inverse)));
    }
}

bool fill_state(const Operation& op, GatingState* state) {
    const int64_t scaling_bytes = CODES * static_cast<int64_t>(sizeof(Scaling));
    if (!state->scalings.allocate(scaling_bytes) || !state->exact.allocate(CODES)) return false;
    if (!state->tables.allocate(CODES * CODES)) return false;
    state->map = is_gate(op, 1) ? 0 : 1;
    const fxq_operation& record = op.record;
    const double unit = double(record.floats[0]) * double(record.floats[1]) * double(record.floats[2]);
    int64_t looked_up = 0;
    for (int32_t gate = 0; gate < CODES; ++gate) {
        uint8_t(&table)[CODES] = state->tables.as<uint8_t[CODES]>()[gate];
        fill_table(op, state->map, gate, table);
        const double slope = unit * (gate - record.ints[15 - state->map]);
        Scaling* const found = state->scalings.as<Scaling>() + gate;
        const bool exact = fit_scaling(table, slope, record.ints[11], record.ints[12], found);
        state->exact.as<uint8_t>()[gate] = exact;
        looked_up += !exact;
    }
    state->packed_bytes = CODES * (CODES + 1) + scaling_bytes;
    return looked_up <= MOST_LOOKED_UP;
}

int64_t chunks_of(const Operation& op) { return (op.output->channels + CHUNK - 1) / CHUNK; }

// Pieces are chunks of images where there are many, else rows.
bool by_chunks(const Operation& op) { return chunks_of(op) >= MANY_CHUNKS; }

int64_t pieces_of(const Operation& op, int64_t images) {
    return images * (by_chunks(op) ? chunks_of(op) : op.output->height);
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const Tensor& y = *op.output;
    const int64_t pieces = pieces_of(op, images);
    return split(pieces, images * y.height * y.width * y.channels / pieces, LEAST, threads);
}

// Rows begin..end-1 of image n, and of each pixel the chunk that begins with channel `first`.
void gate_rows(const Operation& op, const Context& context, int64_t n, int64_t first, int64_t begin, int64_t end) {
    const GatingState& state = *static_cast<const GatingState*>(op.state);
    const Tensor &x = *op.input[state.map], &y = *op.output;
    const uint8_t* const gates = address(context, *op.input[1 - state.map], n) + first;
    const int64_t width = y.channels - first < CHUNK ? y.channels - first : CHUNK;
    ScalingChunk numbers;
    for (int64_t c = 0; c < CHUNK; ++c) numbers.put(c, state.scalings.as<Scaling>()[c < width ? gates[c] : 0]);
    const Scaler<true> scaled(numbers, op.record);
    const Writer<1> write(Places<1>{{0}}, width);
    const uint8_t* const from = address(context, x, n) + first;
    uint8_t* const to = address(context, y, n) + first;
    for (int64_t row = begin; row < end; ++row)
        for (int64_t i = 0; i < y.width; ++i)
            write(to + row * y.row_pitch + i * y.pixel_pitch,
                  scaled(load_bytes(from + row * x.row_pitch + i * x.pixel_pitch)));
    for (int64_t c = 0; c < width; ++c) {
        if (state.exact.as<uint8_t>()[gates[c]]) continue;
        const uint8_t* const table = state.tables.as<uint8_t>() + gates[c] * CODES;
        for (int64_t row = begin; row < end; ++row)
            for (int64_t i = 0; i < y.width; ++i)
                to[row * y.row_pitch + i * y.pixel_pitch + c] = table[from[row * x.row_pitch + i * x.pixel_pitch + c]];
    }
}

void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const Tensor& y = *op.output;
    const int64_t chunks = chunks_of(op), pieces = pieces_of(op, context.images), each = pieces / context.images;
    int64_t low, high, unused;
    piece(pieces, tasks, begin, &low, &unused);
    piece(pieces, tasks, end - 1, &unused, &high);
    while (low < high) {
        const int64_t n = low / each, first = low % each;
        const int64_t last = each - first < high - low ? each : first + high - low;
        if (by_chunks(op)) {
            for (int64_t i = first; i < last; ++i) gate_rows(op, context, n, i * CHUNK, 0, y.height);
            if (first == 0) write_halo(y, address(context, y, n), 0, y.height);
        } else {
            for (int64_t i = 0; i < chunks; ++i) gate_rows(op, context, n, i * CHUNK, first, last);
            write_halo(y, address(context, y, n), first, last);
        }
        low += last - first;
    }
}

}  // namespace

State* gating_state(const Operation& op) {
    return is_gated(op) ? filled_by(fill_state, op) : nullptr;
}

extern const Kernel gating_kernel = {nullptr, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
