// 3x3 convolutions of stride 1 by Winograd's transforms: a group of tiles is transformed, multiplied with the weights at
// each of the 36 positions, and transformed back, a block of output channels after the other.
#include "conv_winograd.h"

#include <string.h>

#include <new>

#include "conv_block.h"
#include "conv_walk.h"
#include "winograd.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t MOST_TILES = 4 * PIXELS;  // of a group
constexpr int64_t ROOM = 256 << 10;         // bytes of a group's transformed inputs and sums: a part of the second cache
constexpr int64_t MOST_PANELS = 2 << 20;    // bytes of panels, which are eight times as large as the weights
constexpr int64_t LEAST = 1 << 17;          // products of a task
constexpr int64_t PAD = 64;                 // bytes between positions, so that they do not fall on the same cache lines

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

struct WinogradState final : ConvState {
    int64_t rows = 0, columns = 0;  // tiles of an image
    int64_t group = 0;              // tiles that are worked through at once
    int64_t depth = 0;              // input channels with padding
    int64_t inputs = 0, sums = 0;   // bytes between positions

    int64_t tiles() const { return rows * columns; }
};

int64_t count_of(int64_t outputs) { return (outputs + TILE - 1) / TILE; }

// Whether every sum of products of u8 with the channel's weights is below EXACT in size.
bool exact(const Operation& op) {
    const int8_t* w = op.constant[0].as<int8_t>();
    const int64_t taps = op.constant[0].bytes / op.output->channels;
    for (int64_t c = 0; c < op.output->channels; ++c, w += taps) {
        int64_t above = 0, below = 0;
        for (int64_t i = 0; i < taps; ++i) (w[i] > 0 ? above : below) += w[i];
        if (255 * above >= EXACT || -255 * below >= EXACT) return false;
    }
    return true;
}

int64_t panel_bytes(int64_t channels) { return POSITIONS * round_up(channels, 2) * BLOCK * 2; }

// Puts the transformed weights of output channel first + lane into the panel.
void pack_channel(const Operation& op, const int8_t* w, int64_t lane, int8_t* panel) {
    const int64_t depth = op.input[0]->channels, each = round_up(depth, 2) * BLOCK;  // numbers of a position
    for (int64_t k = 0; k < depth; ++k) {
        int32_t rows[3][PATCH], columns[PATCH][3];
        for (int64_t i = 0; i < 3; ++i) {
            const int32_t g[3] = {w[3 * i * depth + k], w[(3 * i + 1) * depth + k], w[(3 * i + 2) * depth + k]};
            transform_weights(g, rows[i]);
            for (int64_t j = 0; j < PATCH; ++j) columns[j][i] = rows[i][j];
        }
        for (int64_t j = 0; j < PATCH; ++j) {
            int32_t whole[PATCH];
            transform_weights(columns[j], whole);
            for (int64_t i = 0; i < PATCH; ++i)
                reinterpret_cast<int16_t*>(panel)[(i * PATCH + j) * each + (k / 2 * BLOCK + lane) * 2 + k % 2] =
                    static_cast<int16_t>(whole[i]);
        }
    }
}

void set_sizes(const Operation& op, WinogradState* state) {
    state->rows = count_of(op.output->height), state->columns = count_of(op.output->width);
    state->depth = round_up(op.input[0]->channels, WORDS);
    const int64_t tile = POSITIONS * (state->depth * 2 + BLOCK * 4), most = ROOM / tile / PIXELS * PIXELS;
    state->group = most < PIXELS ? PIXELS : most < MOST_TILES ? most : MOST_TILES;
    state->inputs = state->group * state->depth * 2 + PAD;
    state->sums = state->group * BLOCK * 4 + PAD;
    state->scratch_bytes = POSITIONS * (state->inputs + state->sums);
}

const char* prepare(Operation& op) {
    WinogradState* state = new (std::nothrow) WinogradState;
    op.state = state;
    if (!state || !prepare_blocks(op, state)) return "out of memory";
    set_sizes(op, state);
    state->panel_bytes = panel_bytes(op.input[0]->channels);
    if (!state->panels.allocate(state->block_count * state->panel_bytes)) return "out of memory";
    const int64_t weights = 9 * op.input[0]->channels;
    for (int64_t c = 0; c < op.output->channels; ++c)
        pack_channel(op, op.constant[0].as<int8_t>() + c * weights, c % BLOCK,
                     state->panels.as<int8_t>() + c / BLOCK * state->panel_bytes);
    state->packed_bytes = state->panels.bytes();
    return nullptr;
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const WinogradState& state = *static_cast<const WinogradState*>(op.state);
    return split(images * state.tiles(), state.panels.bytes() / 2, LEAST, threads);
}

// One tile: where its output begins, and how much of it lies inside of the image.
struct Tile {
    int64_t image, row, column;  // of the first output
    int64_t height, width;       // outputs inside

    Tile(const Operation& op, const WinogradState& state, int64_t number)
        : image(number / state.tiles()),
          row(number % state.tiles() / state.columns * TILE),
          column(number % state.columns * TILE),
          height(op.output->height - row < TILE ? op.output->height - row : TILE),
          width(op.output->width - column < TILE ? op.output->width - column : TILE) {}
};

// Transforms WORDS channels of a patch; `at` gives the channels of input (i, j).
template <class At>
FXQ_INLINE void transform_patch(const At& at, int16_t* to, int64_t step) {
    Six columns[PATCH];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j)
        columns[j] = transform_inputs({at(0, j), at(1, j), at(2, j), at(3, j), at(4, j), at(5, j)});
    const auto row = [&](I Six::*i, int64_t number) {
        const Six t = transform_inputs({columns[0].*i, columns[1].*i, columns[2].*i, columns[3].*i, columns[4].*i,
                                        columns[5].*i});
        int16_t* const p = to + number * PATCH * step;
        store_words(p, t.a), store_words(p + step, t.b), store_words(p + 2 * step, t.c);
        store_words(p + 3 * step, t.d), store_words(p + 4 * step, t.e), store_words(p + 5 * step, t.f);
    };
    row(&Six::a, 0), row(&Six::b, 1), row(&Six::c, 2), row(&Six::d, 3), row(&Six::e, 4), row(&Six::f, 5);
}

// Inputs of a tile to scratch. Taps beyond the last one that an output inside of the image reads are read from that one:
// what stands there does not matter.
void transform_tile(const Operation& op, const Context& context, const WinogradState& state, const Tile& tile,
                    uint8_t* scratch) {
    const int32_t* ints = op.record.ints;
    const Tensor& x = *op.input[0];
    const uint8_t* const base = address(context, x, tile.image) + (tile.row - ints[6]) * x.row_pitch +
                                (tile.column - ints[7]) * x.pixel_pitch;
    const uint8_t* rows[PATCH];
    int64_t columns[PATCH];
    for (int64_t i = 0; i < PATCH; ++i) {
        rows[i] = base + (i < tile.height + 2 ? i : tile.height + 1) * x.row_pitch;
        columns[i] = (i < tile.width + 2 ? i : tile.width + 1) * x.pixel_pitch;
    }
    int16_t* to = reinterpret_cast<int16_t*>(scratch);
    int64_t c = 0;
    for (; c + WORDS <= x.channels; c += WORDS)
        transform_patch([&](int i, int j) { return words(rows[i] + columns[j] + c); }, to + c, state.inputs / 2);
    const int64_t left = x.channels - c;
    if (left)
        transform_patch([&](int i, int j) { return words_partial(rows[i] + columns[j] + c, left); }, to + c,
                        state.inputs / 2);
}

// Sums of all tiles of a group at one position.
void position(const Job& job, const Pixels& pixels, int64_t tiles, int32_t* sums) {
    const int64_t pieces = groups_of_pixels(tiles);
    for (int64_t i = 0; i < pieces; ++i) {
        int64_t from, to;
        piece(tiles, pieces, i, &from, &to);
        sum_words(job, pixels, from, to - from, sums + from * BLOCK);
    }
}

// LANES channels of the 4 x 4 sums of a tile.
FXQ_INLINE void transform_back(const uint8_t* sums, int64_t step, I start, int32_t* to) {
    const auto at = [&](int i, int j) { return load_int(reinterpret_cast<const int32_t*>(sums + (6 * i + j) * step)); };
    Four columns[PATCH];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j)
        columns[j] = transform_sums({at(0, j), at(1, j), at(2, j), at(3, j), at(4, j), at(5, j)});
    const auto row = [&](I Four::*i, int64_t number) {
        const Four t = transform_sums({columns[0].*i, columns[1].*i, columns[2].*i, columns[3].*i, columns[4].*i,
                                       columns[5].*i});
        int32_t* const p = to + number * TILE * BLOCK;
        store_int(p, add(unscaled(t.a), start)), store_int(p + BLOCK, add(unscaled(t.b), start));
        store_int(p + 2 * BLOCK, add(unscaled(t.c), start)), store_int(p + 3 * BLOCK, add(unscaled(t.d), start));
    };
    row(&Four::a, 0), row(&Four::b, 1), row(&Four::c, 2), row(&Four::d, 3);
}

// Notes the addresses of a tile's outputs inside of the image from number `first` on, and closes the gaps that the others
// leave in `sums`. Returns their number.
int64_t note_outputs(const Operation& op, const Context& context, const Tile& tile, Pixels* pixels, int64_t first,
                     int32_t* sums) {
    const Tensor &y = *op.output, &r = op.input[1] ? *op.input[1] : y;
    uint8_t* const to = address(context, y, tile.image) + tile.row * y.row_pitch + tile.column * y.pixel_pitch;
    const uint8_t* const residual =
        address(context, r, tile.image) + tile.row * r.row_pitch + tile.column * r.pixel_pitch;
    for (int64_t i = 0, p = first; i < tile.height; ++i) {
        for (int64_t j = 0; j < tile.width; ++j, ++p) {
            pixels->y[p] = to + i * y.row_pitch + j * y.pixel_pitch;
            pixels->r[p] = residual + i * r.row_pitch + j * r.pixel_pitch;
        }
        if (tile.width < TILE)
            memmove(sums + i * tile.width * BLOCK, sums + i * TILE * BLOCK, static_cast<size_t>(tile.width) * BLOCK * 4);
    }
    return tile.height * tile.width;
}

void finish_tiles(const Operation& op, const Context& context, const WinogradState& state, const Job& job, int64_t begin,
                  int64_t count, const uint8_t* sums) {
    constexpr int64_t OUTPUTS = TILE * TILE, MOST = 4 * OUTPUTS;  // of a tile; of what is finished at once
    alignas(64) int32_t back[MOST * BLOCK];
    Pixels pixels;
    int64_t filled = 0;
    for (int64_t t = 0; t < count; ++t, sums += BLOCK * 4) {
        int32_t* const to = back + filled * BLOCK;
        for (int64_t c = 0; c < job.block.width; c += LANES)
            transform_back(sums + c * 4, state.sums, load_int(job.start + c), to + c);
        filled += note_outputs(op, context, Tile(op, state, begin + t), &pixels, filled, to);
        if (filled + OUTPUTS <= MOST && t + 1 < count) continue;
        finish_memory(job, pixels, 0, filled, back);
        filled = 0;
    }
}

// Tiles begin..begin + count - 1, a group.
void work(const Operation& op, const Context& context, const WinogradState& state, int64_t begin, int64_t count) {
    uint8_t* const inputs = context.scratch;
    uint8_t* const sums = inputs + POSITIONS * state.inputs;
    Pixels pixels;
    for (int64_t t = 0; t < count; ++t) {
        const Tile tile(op, state, begin + t);
        transform_tile(op, context, state, tile, inputs + t * state.depth * 2);
        pixels.x[t] = inputs + t * state.depth * 2;
    }
    alignas(64) static const int32_t none[BLOCK] = {};
    for (int64_t b = 0; b < state.block_count; ++b) {
        const Job job = job_of(op, state, b);
        Job part = job;
        part.start = none, part.segment_count = 1, part.block.input = 0;
        for (int64_t i = 0; i < POSITIONS; ++i) {
            const Segment segment{i * state.inputs, (op.input[0]->channels + 1) / 2};
            part.segments = &segment;
            part.panel = job.panel + i * (state.panel_bytes / POSITIONS);
            position(part, pixels, count, reinterpret_cast<int32_t*>(sums + i * state.sums));
        }
        finish_tiles(op, context, state, job, begin, count, sums);
    }
}

// Writes the halo of the rows that begin with tiles begin..end-1.
void write_halos(const Operation& op, const Context& context, const WinogradState& state, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
        const Tile tile(op, state, t);
        if (tile.column == 0)
            write_halo(*op.output, address(context, *op.output, tile.image), tile.row, tile.row + tile.height);
    }
}

void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const WinogradState& state = *static_cast<const WinogradState*>(op.state);
    int64_t low, high, unused;
    piece(context.images * state.tiles(), tasks, begin, &low, &unused);
    piece(context.images * state.tiles(), tasks, end - 1, &unused, &high);
    const int64_t groups = (high - low + state.group - 1) / state.group;
    for (int64_t i = 0; i < groups; ++i) {
        int64_t from, to;
        piece(high - low, groups, i, &from, &to);
        work(op, context, state, low + from, to - from);
    }
    if (has_halo(*op.output)) write_halos(op, context, state, low, high);
}

}  // namespace

bool suits_winograd(const Operation& op) {
    const int32_t* ints = op.record.ints;
    const Tensor& y = *op.output;
    for (int i = 0; i < 6; ++i)
        if (ints[i] != (i < 2 ? 3 : 1)) return false;  // kernel, stride, dilation
    const int64_t channels = op.input[0]->channels, blocks = (y.channels + BLOCK - 1) / BLOCK;
    if (ints[8] != 1 || blocks * panel_bytes(channels) > MOST_PANELS) return false;
    // Cycles for an image, roughly: products, transforms, and the panels, read once by each thread.
    const int64_t tiles = count_of(y.height) * count_of(y.width);
    const int64_t direct = int64_t(y.height) * y.width * 9 * ((channels + 3) / 4) * blocks * 2 * BYTES_COST;
    const int64_t products = tiles * POSITIONS * ((channels + 1) / 2) * blocks * 2;
    const int64_t transforms = tiles * (round_up(channels, WORDS) / WORDS * 250 + blocks * 400);
    const int64_t reading = blocks * panel_bytes(channels) / 4;
    return products + transforms + reading < direct && exact(op);
}

extern const Kernel winograd_kernel = {prepare, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
