// Packing a convolution's weights into panels.
#include <math.h>
#include <string.h>

#include "conv_state.h"

namespace fxq {
namespace {

constexpr int64_t LANES = 16;

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

struct Shape {
    int64_t rows, columns, depth, width, groups;  // depth, width: input and output channels of a group
    int64_t merged;                               // groups that share a block
    bool by_rows;                                 // a kernel row is one segment
};

// Narrow groups share the 16 lanes of a vector: the weights between different groups are zero.
int64_t merged_groups(const Operation& op, int64_t depth, int64_t width, int64_t groups) {
    const int64_t merged = width < LANES ? LANES / width : 1;
    const int64_t most = merged < groups ? merged : groups;
    const bool near = most * depth + op.input[0]->channels < BACK_SLACK / 2;
    return groups > 1 && near ? most : 1;
}

Shape shape_of(const Operation& op) {
    const int32_t* ints = op.record.ints;
    Shape s{ints[0], ints[1], op.input[0]->channels / ints[8], op.output->channels / ints[8], ints[8], 1, false};
    s.merged = merged_groups(op, s.depth, s.width, s.groups);
    s.by_rows = s.groups == 1 && (s.columns == 1 || (ints[5] == 1 && op.input[0]->pixel_pitch == s.depth));
    return s;
}

bool make_segments(const Operation& op, const Shape& s, int64_t unit, ConvState* state) {
    const int64_t bytes = s.by_rows ? s.columns * s.depth : s.merged * s.depth;
    const int64_t columns = s.by_rows ? 1 : s.columns;
    state->segment_count = s.rows * columns;
    if (!state->segments.allocate(state->segment_count * static_cast<int64_t>(sizeof(Segment)))) return false;
    Segment* segment = state->segments.as<Segment>();
    const int32_t* ints = op.record.ints;
    for (int64_t i = 0; i < s.rows; ++i)
        for (int64_t j = 0; j < columns; ++j)
            *segment++ = {i * ints[4] * op.input[0]->row_pitch + j * ints[5] * op.input[0]->pixel_pitch,
                          round_up(bytes, unit) / unit};
    state->panel_bytes = state->segment_count * round_up(bytes, unit) * BLOCK;
    return true;
}

bool make_blocks(const Shape& s, ConvState* state) {
    const int64_t bundle = s.merged * s.width;  // output channels that read the same inputs
    const int64_t bundles = (s.groups + s.merged - 1) / s.merged, each = (bundle + BLOCK - 1) / BLOCK;
    if (!state->blocks.allocate(bundles * each * static_cast<int64_t>(sizeof(Block)))) return false;
    Block* block = state->blocks.as<Block>();
    for (int64_t i = 0; i < bundles; ++i) {
        const int64_t begin = i * bundle;
        const int64_t end = begin + bundle < s.groups * s.width ? begin + bundle : s.groups * s.width;
        for (int64_t first = begin; first < end; first += BLOCK, ++block) {
            const int64_t width = end - first < BLOCK ? end - first : BLOCK;
            *block = {static_cast<int32_t>(first), static_cast<int32_t>(width), i * s.merged * s.depth};
        }
    }
    state->block_count = block - state->blocks.as<Block>();
    return true;
}

// Puts the weights of output channel first + lane into the panel.
void pack_channel(const Operation& op, const Shape& s, const Block& block, int64_t lane, int64_t segment_bytes,
                  int8_t* panel) {
    const int64_t channel = block.first + lane;
    const int8_t* w = op.constant[0].as<int8_t>() + channel * s.rows * s.columns * s.depth;
    const int64_t inside = channel / s.width * s.depth - block.input;  // the group's first channel in the segment
    for (int64_t tap = 0; tap < s.rows * s.columns; ++tap) {
        const int64_t segment = s.by_rows ? tap / s.columns : tap;
        const int64_t base = (s.by_rows ? tap % s.columns * s.depth : 0) + inside;
        int8_t* to = panel + segment * segment_bytes * BLOCK;
        for (int64_t k = 0; k < s.depth; ++k) {
            const int64_t byte = base + k;
            to[(byte / 4 * BLOCK + lane) * 4 + byte % 4] = *w++;
        }
    }
}

bool pack_numbers(const Operation& op, ConvState* state) {
    Buffer* const to[3] = {&state->start, &state->scale, &state->bias};
    for (int i = 0; i < 3; ++i) {
        if (!to[i]->allocate(state->block_count * BLOCK * 4)) return false;
        const uint8_t* from = op.constant[i + 1].as<uint8_t>();
        for (int64_t b = 0; b < state->block_count; ++b) {
            const Block& block = state->blocks.as<Block>()[b];
            memcpy(to[i]->as<uint8_t>() + b * BLOCK * 4, from + block.first * 4, static_cast<size_t>(block.width) * 4);
        }
    }
    return true;
}

bool is_small(const Operation& op) {
    const int8_t* w = op.constant[0].as<int8_t>();
    for (int64_t i = 0; i < op.constant[0].bytes; ++i)
        if (w[i] > 64 || w[i] < -64) return false;
    return true;
}

// A bound of |f(v) * inverse| where |v| <= most, or infinity.
double result_bound(const Operation& op, double most) {
    switch (op.record.ints[9]) {
        case FXQ_IDENTITY: return most;
        case FXQ_SILU:
        case FXQ_SIGMOID:
        case FXQ_TANH:
        case FXQ_GELU:
        case FXQ_GELU_TANH:
        case FXQ_HARDSWISH:
        case FXQ_HARDSIGMOID:
        case FXQ_MISH: return (most + 1) * fmax(1.0, fabs(static_cast<double>(op.record.floats[2])));
        default: return INFINITY;
    }
}

}  // namespace

ConvState::~ConvState() {}

bool values_bounded(const Operation& op) {
    const int8_t* w = op.constant[0].as<int8_t>();
    const int64_t taps = op.constant[0].bytes / op.output->channels;
    const double extra = 255.0 * fabs(op.record.floats[0]) + fabs(op.record.floats[1]);
    for (int64_t c = 0; c < op.output->channels; ++c) {
        int64_t sum = 0;
        for (int64_t i = 0; i < taps; ++i) sum += w[c * taps + i] < 0 ? -w[c * taps + i] : w[c * taps + i];
        int32_t start;
        float scale, bias;
        memcpy(&start, op.constant[1].as<uint8_t>() + 4 * c, 4);
        memcpy(&scale, op.constant[2].as<uint8_t>() + 4 * c, 4);
        memcpy(&bias, op.constant[3].as<uint8_t>() + 4 * c, 4);
        const double most = 255.0 * static_cast<double>(sum) + fabs(static_cast<double>(start));
        const double real = most * fabs(static_cast<double>(scale)) + fabs(static_cast<double>(bias)) + extra;
        if (!(most < 2147483000.0 && result_bound(op, real) < 1073741824.0)) return false;  // also where something is not a number
    }
    return true;
}

bool prepare_blocks(const Operation& op, ConvState* state) {
    state->bounded = values_bounded(op);
    return make_blocks(shape_of(op), state) && pack_numbers(op, state);
}

const char* pack_convolution(const Operation& op, int64_t unit, ConvState* state) {
    const Shape s = shape_of(op);
    if (!prepare_blocks(op, state) || !make_segments(op, s, unit, state)) return "out of memory";
    if (!state->panels.allocate(state->block_count * state->panel_bytes)) return "out of memory";
    const int64_t segment_bytes = state->segments.as<Segment>()->steps * unit;
    for (int64_t b = 0; b < state->block_count; ++b) {
        const Block& block = state->blocks.as<Block>()[b];
        int8_t* panel = state->panels.as<int8_t>() + b * state->panel_bytes;
        for (int64_t lane = 0; lane < block.width; ++lane) pack_channel(op, s, block, lane, segment_bytes, panel);
    }
    state->packed_bytes = state->panels.bytes();
    state->small = is_small(op);
    return nullptr;
}

}  // namespace fxq
