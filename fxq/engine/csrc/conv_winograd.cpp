// 3x3 convolutions of stride 1 by Winograd's transforms: a group of tiles is transformed, multiplied with the weights at
// each of the 36 positions, and transformed back, a block of output channels after the other.
//
// Transformed weights have eight times the bytes. Up to a limit they are kept, and threads share the tiles. Beyond, they are
// made of the direct convolution's panels in every call, a row of positions at a time, and threads share the output channels;
// where there are too few tiles for that, the direct convolution runs.
#include "conv_winograd.h"

#include <string.h>

#include <new>

#include "conv_block.h"
#include "conv_walk.h"
#include "winograd_tiles.h"
#include "winograd_weights.h"

namespace fxq {
namespace FXQ_NS {

extern const Kernel conv_kernel;  // the direct one

namespace {

constexpr int64_t MOST_TILES = 4 * PIXELS;  // of a group
constexpr int64_t ROOM = 256 << 10;         // bytes of a group's transformed inputs and sums: a part of the second cache
constexpr int64_t WIDE_ROOM = 768 << 10;    // where the group's weights are made for it
constexpr int64_t MOST_KEPT = 2 << 20;      // bytes of transformed weights
constexpr int64_t MOST_IMAGES = 64;         // of a call, where it is asked whether the transforms ever pay
constexpr int64_t LEAST = 1 << 17;          // products of a task
constexpr int64_t PAD = 64;                 // bytes between positions, so that they do not fall on the same cache lines

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

struct WinogradState final : ConvState {
    bool kept = false;             // panels are transformed weights
    int64_t fewest = 0;            // images from which on the transforms pay
    int64_t tiles = 0;             // of an image
    int64_t group = 0;             // tiles that are worked through at once
    int64_t depth = 0;             // input channels with padding
    int64_t inputs = 0, sums = 0;  // bytes between positions
};

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

int64_t blocks_of(const Operation& op) { return (op.output->channels + BLOCK - 1) / BLOCK; }

int64_t tiles_of(const Operation& op) { return Line{op.output->height}.tiles() * Line{op.output->width}.tiles(); }

// Tiles that are worked through at once: as many as leave room in the second cache.
int64_t group_of(const Operation& op, bool kept) {
    const int64_t tile = POSITIONS * (round_up(op.input[0]->channels, WORDS) * 2 + BLOCK * 4);
    const int64_t most = kept ? ROOM / tile / PIXELS * PIXELS : WIDE_ROOM / tile;
    return most < PIXELS ? PIXELS : most < MOST_TILES ? most : MOST_TILES;
}

// Cycles of the direct convolution, and of this one: products, transforms, and the weights, read by each thread or made.
// All roughly.
bool pays(const Operation& op, int64_t images, bool kept) {
    const Tensor& y = *op.output;
    const Line rows{y.height}, columns{y.width};
    const int64_t channels = op.input[0]->channels, blocks = blocks_of(op), quads = quads_of(channels);
    const int64_t direct = images * y.height * y.width * 9 * quads * blocks * 2 * BYTES_COST;
    const int64_t products = images * rows.positions() * columns.positions() * quads * 2 * blocks * 2;
    const int64_t transforms = images * tiles_of(op) * (round_up(channels, WORDS) / WORDS * 250 + blocks * 400);
    const int64_t panels = blocks * PATCH * row_bytes(channels), group = group_of(op, kept);
    const int64_t times = (images * tiles_of(op) + group - 1) / group;
    const int64_t weights = kept ? panels / 4 : times * panels / LANES;
    return products + transforms + weights < direct;
}

// Whether transformed weights are held.
bool keeps(const Operation& op) {
    return blocks_of(op) * PATCH * row_bytes(op.input[0]->channels) <= MOST_KEPT && pays(op, 1, true);
}

// Number of images from which on the transforms pay, with the weights made in every call; 0 where they never do. Threads
// share the blocks, so that there must be enough of them.
int64_t fewest_images(const Operation& op) {
    if (blocks_of(op) < 4 || blocks_of(op) % 2) return 0;
    for (int64_t images = 1; images <= MOST_IMAGES; images *= 2)
        if (pays(op, images, false)) return images;
    return 0;
}

void set_sizes(const Operation& op, WinogradState* state) {
    state->kept = keeps(op);
    state->fewest = state->kept ? 1 : fewest_images(op);
    state->tiles = tiles_of(op);
    state->group = group_of(op, state->kept);
    state->depth = round_up(op.input[0]->channels, WORDS);
    state->inputs = state->group * state->depth * 2 + PAD;
    state->sums = state->group * BLOCK * 4 + PAD;
    state->scratch_bytes = POSITIONS * (state->inputs + state->sums);
    if (!state->kept) state->scratch_bytes += row_bytes(op.input[0]->channels);
}

// Puts transformed weights in the place of the panels.
bool keep(const Operation& op, WinogradState* state) {
    const int64_t channels = op.input[0]->channels, bytes = PATCH * row_bytes(channels);
    Buffer panels;
    if (!panels.copy(state->panels.as<int8_t>(), state->panels.bytes())) return false;
    if (!state->panels.allocate(state->block_count * bytes)) return false;
    for (int64_t i = 0; i < state->block_count * PATCH; ++i)
        transform_weights(i % PATCH, panels.as<int8_t>() + i / PATCH * state->panel_bytes, channels,
                          state->panels.as<int8_t>() + i * row_bytes(channels));
    state->panel_bytes = bytes;
    return true;
}

const char* prepare(Operation& op) {
    WinogradState* state = new (std::nothrow) WinogradState;
    op.state = state;
    if (!state) return "out of memory";
    if (const char* why = pack_convolution(op, 4, state)) return why;
    set_sizes(op, state);
    if (state->kept && !keep(op, state)) return "out of memory";
    state->packed_bytes = state->panels.bytes();
    return nullptr;
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const WinogradState& state = *static_cast<const WinogradState*>(op.state);
    if (images < state.fewest) return conv_kernel.tasks(op, images, threads);
    if (state.kept) return split(images * state.tiles, state.panels.bytes() / 2, LEAST, threads);
    return threads < state.block_count ? threads : state.block_count;  // each transforms all inputs
}

void take_tile(const Operation& op, const Context& context, const WinogradState& state, const Tile& tile, uint8_t* to) {
    const int32_t* ints = op.record.ints;
    const Tensor& x = *op.input[0];
    const uint8_t* const first = address(context, x, tile.image) + (tile.row - ints[6]) * x.row_pitch +
                                 (tile.column - ints[7]) * x.pixel_pitch;
    with_sides(tile, [&](auto sides) {
        using S = decltype(sides);
        transform_tile<S::low, S::narrow>(x, first, tile, reinterpret_cast<int16_t*>(to), state.inputs / 2);
    });
}

// Sums of tiles from..to-1 of a group at one position.
void position(const Job& job, const Pixels& pixels, int64_t from, int64_t to, int32_t* sums) {
    const int64_t pieces = groups_of_pixels(to - from);
    for (int64_t i = 0; i < pieces; ++i) {
        int64_t first, last;
        piece(to - from, pieces, i, &first, &last);
        sum_words(job, pixels, from + first, last - first, sums + (from + first) * BLOCK);
    }
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

using Tiles = Group<MOST_TILES>;

void finish_tiles(const Operation& op, const Context& context, const WinogradState& state, const Job& job,
                  const Tiles& group, const uint8_t* sums) {
    constexpr int64_t OUTPUTS = TILE * TILE, MOST = 4 * OUTPUTS;  // of a tile; of what is finished at once
    alignas(64) int32_t back[MOST * BLOCK];
    Pixels pixels;
    const int64_t count = group.ends[3];
    for (int64_t t = 0, filled = 0; t < count; ++t, sums += BLOCK * 4) {
        const Tile& tile = group.tiles[t];
        int32_t* const to = back + filled * BLOCK;
        with_sides(tile, [&](auto sides) {
            using S = decltype(sides);
            for (int64_t c = 0; c < job.block.width; c += LANES)
                transform_back<S::low, S::narrow>(sums + c * 4, state.sums, load_int(job.start + c), to + c);
        });
        filled += note_outputs(op, context, tile, &pixels, filled, to);
        if (filled + OUTPUTS <= MOST && t + 1 < count) continue;
        finish_memory(job, pixels, 0, filled, back);
        filled = 0;
    }
}

// One block of output channels of a group whose transformed inputs are noted.
void work_block(const Operation& op, const WinogradState& state, const Job& job, const Tiles& group, const Pixels& pixels,
                uint8_t* sums) {
    const int64_t channels = op.input[0]->channels;
    int8_t* const made = reinterpret_cast<int8_t*>(sums + POSITIONS * state.sums);
    alignas(64) static const int32_t none[BLOCK] = {};
    Job part = job;
    part.start = none, part.segment_count = 1, part.block.input = 0;
    for (int64_t i = 0; i < POSITIONS; ++i) {
        const int64_t row = i / PATCH, column = i % PATCH;
        if (!state.kept && column == 0) transform_weights(row, job.panel, channels, made);
        const Segment segment{i * state.inputs, quads_of(channels) * 2};
        part.segments = &segment;
        part.panel = state.kept ? job.panel + i * position_bytes(channels) : made + column * position_bytes(channels);
        int64_t from, to;
        group.having(row, column, &from, &to);
        position(part, pixels, from, to, reinterpret_cast<int32_t*>(sums + i * state.sums));
    }
}

// Tiles begin..begin + count - 1, a group, by blocks first..last - 1.
void work(const Operation& op, const Context& context, int64_t begin, int64_t count, int64_t first, int64_t last) {
    const WinogradState& state = *static_cast<const WinogradState*>(op.state);
    uint8_t* const inputs = context.scratch;
    uint8_t* const sums = inputs + POSITIONS * state.inputs;
    const Tiles group(*op.output, begin, count);
    Pixels pixels;
    for (int64_t t = 0; t < count; ++t) {
        take_tile(op, context, state, group.tiles[t], inputs + t * state.depth * 2);
        pixels.x[t] = inputs + t * state.depth * 2;
    }
    for (int64_t b = first; b < last; ++b) {
        const Job job = job_of(op, state, b);
        work_block(op, state, job, group, pixels, sums);
        finish_tiles(op, context, state, job, group, sums);
    }
}

// Writes the halo of the rows that begin with tiles begin..end-1.
void write_halos(const Operation& op, const Context& context, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
        const Tile tile(*op.output, t);
        if (tile.column == 0)
            write_halo(*op.output, address(context, *op.output, tile.image), tile.row, tile.row + tile.height);
    }
}

void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const WinogradState& state = *static_cast<const WinogradState*>(op.state);
    if (context.images < state.fewest) return conv_kernel.run(op, context, tasks, begin, end);
    int64_t low = 0, high = context.images * state.tiles, first = 0, last = state.block_count, unused;
    const int64_t lines = state.kept ? high : last;
    piece(lines, tasks, begin, state.kept ? &low : &first, &unused);
    piece(lines, tasks, end - 1, &unused, state.kept ? &high : &last);
    const int64_t groups = (high - low + state.group - 1) / state.group;
    for (int64_t i = 0; i < groups; ++i) {
        int64_t from, to;
        piece(high - low, groups, i, &from, &to);
        work(op, context, low + from, to - from, first, last);
    }
    if (first == 0 && has_halo(*op.output)) write_halos(op, context, low, high);
}

}  // namespace

bool suits_winograd(const Operation& op) {
    const int32_t* ints = op.record.ints;
    for (int i = 0; i < 6; ++i)
        if (ints[i] != (i < 2 ? 3 : 1)) return false;  // kernel, stride, dilation
    if (ints[8] != 1) return false;
    const Tensor& x = *op.input[0];
    if (x.pixel_pitch == x.channels && x.channels % 4) return false;  // taps share steps of the panels
    return (keeps(op) || fewest_images(op)) && exact(op);
}

extern const Kernel winograd_kernel = {prepare, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
