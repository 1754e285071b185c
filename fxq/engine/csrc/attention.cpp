// ATTENTION: softmax(q k^T * scale + mask) v of real values, head by head, for blocks of queries.
//
// The scores of a block lie as [key][query], so that a lane is a query: maxima and sums need no other lane, and their
// order is that of the keys on every instruction set. A head's k and v are copied side by side first (in the caller's
// tensor a head's tokens are far apart and share few cache sets); scores stay in the nearest caches.
#include "attention_parts.h"
#include "bytes.h"
#include "finish.h"
#include "product.h"
#include "rows.h"
#include "turn.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t VECTORS = LANES == 16 ? 3 : 2;  // of queries in a block
constexpr int64_t QUERIES = VECTORS * LANES;

int64_t lines(int64_t floats) { return (floats + 15) / 16 * 16; }

struct Scratch : Parts64 {
    float* const tokens;
    float* const query;
    float* const scores;
    float* const result;
    float* const factor;
    float* const keys;
    float* const values;

    Scratch(const AttentionShape& shape, uint8_t* base)
        : Parts64(base),
          tokens(take<float>(QUERIES * lines(shape.depth))),
          query(take<float>(lines(shape.depth) * QUERIES)),
          scores(take<float>(shape.keys * QUERIES)),
          result(take<float>(QUERIES * lines(shape.width))),
          factor(take<float>(QUERIES)),
          keys(take<float>(shape.keys * lines(shape.depth))),
          values(take<float>(shape.keys * lines(shape.width))) {}
};

const char* prepare(Operation& op) {
    return prepare_attention(op, Scratch(AttentionShape(op, QUERIES), nullptr).total());
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    return attention_tasks(AttentionShape(op, QUERIES), images, threads);
}

// Values of `count` tokens of a head from `first` on, one every lines(channels), zeros between them.
void copy_tokens(const Operation& op, const Context& context, int index, int64_t n, int64_t head, int64_t channels,
                 int64_t first, int64_t count, float* to) {
    const Tensor& x = *op.input[index];
    const uint8_t* from = address(context, x, n) + head * channels * 4 + first * x.pixel_pitch;
    for (int64_t i = 0; i < count; ++i, from += x.pixel_pitch, to += lines(channels)) {
        copy_bytes(reinterpret_cast<uint8_t*>(to), from, channels * 4);
        for (int64_t c = channels; c < lines(channels); ++c) to[c] = 0.0f;
    }
}

// q * scale of tokens as [channel][query], `wide` queries; missing ones are zero.
void turn_queries(const float* tokens, int64_t count, int64_t pitch, int64_t wide, float scale, float* out) {
    const F factor = set(scale);
    for (int64_t first = 0; first < wide; first += LANES) {
        for (int64_t c = 0; c < pitch; c += LANES) {
            F block[LANES];
            for (int64_t i = 0; i < LANES; ++i)
                block[i] = first + i < count ? mul(load(tokens + (first + i) * pitch + c), factor) : set(0.0f);
            turn(block);
            for (int64_t i = 0; i < LANES; ++i) store(out + (c + i) * wide + first, block[i]);
        }
    }
}

// Scores to exp(score - maximum), and the reciprocals of their sums.
template <int vectors>
void soften(float* scores, int64_t keys, float* factor) {
    F most[vectors], sum[vectors];
    for (int k = 0; k < vectors; ++k) most[k] = set(LOWEST), sum[k] = set(0.0f);
    for (int64_t key = 0; key < keys; ++key)
        for (int k = 0; k < vectors; ++k) most[k] = maximum(load(scores + (key * vectors + k) * LANES), most[k]);
    for (int64_t key = 0; key < keys; ++key) {
        for (int k = 0; k < vectors; ++k) {
            float* place = scores + (key * vectors + k) * LANES;
            const F v = exponential(sub(load(place), most[k]));
            store(place, v);
            sum[k] = add(sum[k], v);
        }
    }
    const F zero = set(0.0f);
    for (int k = 0; k < vectors; ++k)
        store(factor + k * LANES, select(less(zero, sum[k]), div(set(1.0f), sum[k]), zero));
}

void soften(float* scores, int64_t keys, int64_t vectors, float* factor) {
    if (vectors == 1) return soften<1>(scores, keys, factor);
    if (vectors == 2) return soften<2>(scores, keys, factor);
    soften<VECTORS>(scores, keys, factor);
}

// One block of queries of a head whose keys and values have been copied.
void head_block(const Operation& op, const Context& context, const AttentionShape& shape, const Scratch& scratch,
                int64_t n, int64_t head, const Block& block) {
    const Tensor& y = *op.output;
    copy_tokens(op, context, 0, n, head, shape.depth, block.first, block.count, scratch.tokens);
    turn_queries(scratch.tokens, block.count, lines(shape.depth), block.wide, op.record.floats[0], scratch.query);
    product({scratch.keys, lines(shape.depth), 1}, {scratch.query, block.wide}, {scratch.scores, block.wide},
            block.keys, block.vectors, shape.depth);
    add_mask(op, context, n, head, block, shape.queries, scratch.scores);
    soften(scratch.scores, block.keys, block.vectors, scratch.factor);
    product({scratch.scores, 1, block.wide}, {scratch.values, lines(shape.width)},
            {scratch.result, lines(shape.width)}, block.count, (shape.width + LANES - 1) / LANES, block.keys);
    const Finish finish(y.type == FXQ_U8, op.record.floats[2], codes_for(op.record, y));
    uint8_t* out = address(context, y, n) + block.first * y.pixel_pitch + head * shape.width * y.size;
    for (int64_t i = 0; i < block.count; ++i)
        finish(ScaledSource{{scratch.result + i * lines(shape.width)}, {set(scratch.factor[i])}},
               out + i * y.pixel_pitch, shape.width);
}

void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const AttentionShape shape(op, QUERIES);
    const Scratch scratch(shape, context.scratch);
    int64_t copied = -1;
    each_row(context.images, shape.heads * shape.blocks, tasks, begin, end, [&](int64_t n, int64_t part) {
        const int64_t head = part / shape.blocks;
        if (copied != n * shape.heads + head) {
            copied = n * shape.heads + head;
            copy_tokens(op, context, 1, n, head, shape.depth, 0, shape.keys, scratch.keys);
            copy_tokens(op, context, 2, n, head, shape.width, 0, shape.keys, scratch.values);
        }
        head_block(op, context, shape, scratch, n, head, Block(op, shape, part % shape.blocks));
        if (part == 0) write_halo(*op.output, address(context, *op.output, n), 0, 1);
    });
}

}  // namespace

extern const Kernel attention_kernel = {prepare, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
