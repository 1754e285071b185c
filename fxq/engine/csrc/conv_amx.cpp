// The convolution on AMX tiles: blocks of 32 pixels by 32 output channels, 64 bytes of input a step.
//
// A tile's 16 rows are 16 pixels at a constant distance. Pixels at one distance are read where they are; others (across
// rows and images, tails) are gathered once for all output channels.
#include <new>

#include "conv_finish_avx512.h"
#include "conv_walk.h"
#include "tiles.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t STEP = 64;            // input bytes of a step
constexpr int64_t ROWS = 16;            // pixels of a tile
constexpr int64_t PAIR = 2 * ROWS;      // pixels of a block
constexpr int64_t SUMS = PAIR * BLOCK * 4;  // bytes of a block's sums
constexpr int64_t GATHERED = 512 << 10;     // bytes of gathered input that stay in the second cache
constexpr int64_t LEAST = 8 << 20;          // products of a task

int64_t steps_of(const ConvState& state) { return state.panel_bytes / (BLOCK * STEP); }

// Pixels that are worked through with one panel before the next one is taken.
int64_t sweep(const ConvState& state) {
    const int64_t blocks = GATHERED / (steps_of(state) * STEP * PAIR), most = Pixels::CAPACITY / PAIR;
    return (blocks < 1 ? 1 : blocks < most ? blocks : most) * PAIR;
}

const char* prepare(Operation& op) {
    ConvState* state = new (std::nothrow) ConvState;
    op.state = state;
    if (!state) return "out of memory";
    if (const char* why = pack_convolution(op, STEP, state)) return why;
    state->scratch_bytes = SUMS + sweep(*state) * steps_of(*state) * STEP;
    return nullptr;
}

int64_t blocks_of(int64_t pixels) { return (pixels + PAIR - 1) / PAIR; }

bool by_channels(const ConvState& state, int64_t pixels) {
    if (state.block_count < 4) return false;
    return blocks_of(pixels) < 4 || (state.panels.bytes() > GATHERED && blocks_of(pixels) < 32);
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const ConvState& state = *static_cast<const ConvState*>(op.state);
    const int64_t pixels = images * op.output->height * op.output->width;
    const int64_t lines = by_channels(state, pixels) ? state.block_count : blocks_of(pixels);
    return split(lines, pixels * state.panels.bytes() / lines, LEAST, threads);
}

// The input of one tile: where step s of segment g begins is base + segment offset + s * 64 (as it lies in the value),
// or base + (number of the step) * 1024 (gathered).
struct Rows {
    const uint8_t* base;
    int64_t pitch;
    bool gathered;
};

bool equidistant(const uint8_t* const* x) {
    for (int64_t i = 2; i < ROWS; ++i)
        if (x[i] - x[i - 1] != x[1] - x[0]) return false;
    return true;
}

// Input from channel `input` on of pixels first..first + count - 1, the last one repeated to fill the tile.
Rows rows_of(const ConvState& state, const Pixels& pixels, int64_t input, int64_t first, int64_t count,
             uint8_t* room) {
    const uint8_t* const* x = pixels.x + first;
    if (count >= ROWS && equidistant(x)) return {x[0] + input, x[1] - x[0], false};
    uint8_t* to = room;
    for (int64_t g = 0; g < state.segment_count; ++g) {
        const Segment segment = state.segments.as<Segment>()[g];
        for (int64_t s = 0; s < segment.steps; ++s)
            for (int64_t i = 0; i < ROWS; ++i, to += STEP)
                memcpy(to, x[i < count ? i : count - 1] + input + segment.offset + s * STEP, STEP);
    }
    return {room, STEP, true};
}

// The sums of up to 32 pixels and 32 channels, [pixel][32]. `two`: the second tile of pixels is wanted.
void accumulate(const Job& job, const Rows* rows, bool two, int32_t* sums) {
    const bool wide = job.block.width > 16;
    load_tile<0>(job.start, 0);  // the same starts in every row
    load_tile<1>(job.start + 16, 0);
    load_tile<2>(job.start, 0);
    load_tile<3>(job.start + 16, 0);
    const int8_t* w = job.panel;
    int64_t number = 0;
    for (int64_t g = 0; g < job.segment_count; ++g) {
        const Segment segment = job.segments[g];
        for (int64_t s = 0; s < segment.steps; ++s, ++number, w += STEP * BLOCK) {
            const int64_t there = segment.offset + s * STEP, gathered = number * ROWS * STEP;
            load_tile<4>(rows[0].base + (rows[0].gathered ? gathered : there), rows[0].pitch);
            load_tile<6>(w, 128);
            dot_tiles<0, 4, 6>();
            if (two) {
                load_tile<5>(rows[1].base + (rows[1].gathered ? gathered : there), rows[1].pitch);
                dot_tiles<2, 5, 6>();
            }
            if (!wide) continue;
            load_tile<7>(w + 64, 128);
            dot_tiles<1, 4, 7>();
            if (two) dot_tiles<3, 5, 7>();
        }
    }
    store_tile<0>(sums, BLOCK * 4);
    store_tile<1>(sums + 16, BLOCK * 4);
    if (!two) return;
    store_tile<2>(sums + ROWS * BLOCK, BLOCK * 4);
    store_tile<3>(sums + ROWS * BLOCK + 16, BLOCK * 4);
}

template <int finish>
void finish_fast(const Job& job, const Pixels& pixels, int64_t first, int64_t count, const int32_t* sums) {
    const FastFinish fast(job);
    for (int64_t p = 0; p < count; p += 2) {
        const int64_t q = p + 1 < count ? p + 1 : p;
        const int32_t *const a = sums + p * BLOCK, *const b = sums + q * BLOCK;
        fast.template pair<finish>(pixels, first + p, first + q, load_int(a), load_int(a + 16), load_int(b),
                                   load_int(b + 16), 2);
    }
}

void finish_block(const Job& job, const Pixels& pixels, int64_t first, int64_t count, const int32_t* sums) {
    if (job.finish == FINISH_PLAIN) return finish_fast<FINISH_PLAIN>(job, pixels, first, count, sums);
    if (job.finish == FINISH_RESIDUAL) return finish_fast<FINISH_RESIDUAL>(job, pixels, first, count, sums);
    finish_memory(job, pixels, first, count, sums);
}

// `count` noted pixels by blocks first..last-1.
void work_sweep(const Operation& op, const Context& context, const Pixels& pixels, int64_t count, int64_t first,
                int64_t last) {
    const ConvState& state = *static_cast<const ConvState*>(op.state);
    int32_t* const sums = reinterpret_cast<int32_t*>(context.scratch);
    uint8_t* const room = context.scratch + SUMS;
    const int64_t each = steps_of(state) * STEP * ROWS;  // bytes of a gathered tile
    Rows rows[Pixels::CAPACITY / ROWS];
    int64_t input = -1;  // what `rows` holds: the same for all blocks but those of other groups
    for (int64_t b = first; b < last; ++b) {
        const Job job = job_of(op, state, b);
        if (job.block.input != input) {
            input = job.block.input;
            for (int64_t p = 0; p < count; p += ROWS)
                rows[p / ROWS] = rows_of(state, pixels, input, p, count - p < ROWS ? count - p : ROWS,
                                         room + p / ROWS * each);
        }
        for (int64_t p = 0; p < count; p += PAIR) {
            const int64_t pair = count - p < PAIR ? count - p : PAIR;
            accumulate(job, rows + p / ROWS, pair > ROWS, sums);
            finish_block(job, pixels, p, pair, sums);
        }
    }
}

void work(const Operation& op, const Context& context, int64_t begin, int64_t end, int64_t first, int64_t last,
          bool halo) {
    const int64_t step = sweep(*static_cast<const ConvState*>(op.state));
    Walker walker(op, context, begin);
    Pixels pixels;
    while (begin < end) {
        const int64_t count = end - begin < step ? end - begin : step;
        walker.note(count, halo, &pixels);
        work_sweep(op, context, pixels, count, first, last);
        begin += count;
    }
}

void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const ConvState& state = *static_cast<const ConvState*>(op.state);
    const int64_t pixels = context.images * op.output->height * op.output->width;
    int64_t low, high, unused;
    open_tiles();  // in every piece: other libraries configure the tiles of their threads too
    if (by_channels(state, pixels)) {
        piece(state.block_count, tasks, begin, &low, &unused);
        piece(state.block_count, tasks, end - 1, &unused, &high);
        work(op, context, 0, pixels, low, high, low == 0);
    } else {
        piece(blocks_of(pixels), tasks, begin, &low, &unused);
        piece(blocks_of(pixels), tasks, end - 1, &unused, &high);
        work(op, context, low * PAIR, high * PAIR < pixels ? high * PAIR : pixels, 0, state.block_count, true);
    }
    close_tiles();
}

}  // namespace

extern const Kernel conv_kernel = {prepare, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
