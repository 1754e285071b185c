// ATTENTION: softmax(q k^T * scale + mask) v, head by head, for blocks of queries.
//
// The scores of a block lie as [key][query], so that a lane is a query: maxima and sums need no other lane, and their
// order is that of the keys on every instruction set. A head's k and v are copied side by side first (in the caller's
// tensor a head's tokens are far apart and share few cache sets); scores stay in the nearest caches.
#include <float.h>
#include <math.h>

#include <new>

#include "finish.h"
#include "product.h"
#include "rows.h"
#include "turn.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t VECTORS = LANES == 16 ? 3 : 2;  // of queries in a block
constexpr int64_t QUERIES = VECTORS * LANES;
constexpr int64_t LEAST = 1 << 16;  // multiplications of a task
constexpr float LOWEST = -FLT_MAX;  // of a maximum, so that a query without keys gives zeros

struct Shape {
    int64_t heads, queries, keys, depth, width;  // depth: channels of a head of q and k; width: of v
    int64_t blocks;                              // of queries

    explicit Shape(const Operation& op)
        : heads(op.record.ints[0]),
          queries(op.input[0]->width),
          keys(op.input[1]->width),
          depth(op.input[0]->channels / heads),
          width(op.input[2]->channels / heads),
          blocks((queries + QUERIES - 1) / QUERIES) {}
};

int64_t lines(int64_t floats) { return (floats + 15) / 16 * 16; }

// Parts of the scratch, in floats.
struct Scratch {
    float *tokens, *query, *scores, *result, *factor, *ramp, *keys, *values;
    int64_t total = 0;

    Scratch(const Shape& shape, float* base) {
        auto take = [&](int64_t floats) {
            float* part = base ? base + total : nullptr;
            total += lines(floats);
            return part;
        };
        tokens = take(QUERIES * lines(shape.depth));
        query = take(lines(shape.depth) * QUERIES);
        scores = take(shape.keys * QUERIES);
        result = take(QUERIES * lines(shape.width));
        factor = take(QUERIES);
        ramp = take(2 * LANES);
        keys = take(shape.keys * lines(shape.depth));
        values = take(shape.keys * lines(shape.width));
    }
};

struct AttentionState final : State {
    Buffer mask;
};

const char* prepare(Operation& op) {
    AttentionState* state = new (std::nothrow) AttentionState;
    op.state = state;
    if (!state) return "no memory";
    state->scratch_bytes = Scratch(Shape(op), nullptr).total * 4;
    if (op.input[3] || !op.constant[0].data) return nullptr;
    state->packed_bytes = op.constant[0].bytes;
    return state->mask.copy(op.constant[0].data, op.constant[0].bytes) ? nullptr : "no memory";
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const Shape shape(op);
    const int64_t cost = QUERIES * shape.keys * (shape.depth + shape.width);
    return split(images * shape.heads * shape.blocks, cost, LEAST, threads);
}

// One of q, k, v: a head's real values, token by token.
struct Operand {
    const uint8_t* data;
    int64_t pitch, channels;
    bool codes;
    F zero, scale;

    Operand(const Operation& op, const Context& context, int index, int64_t n, int64_t head, int64_t depth) {
        const Tensor& x = *op.input[index];
        data = address(context, x, n) + head * depth * x.size;
        pitch = x.pixel_pitch;
        channels = depth;
        codes = x.type == FXQ_U8;
        zero = set(static_cast<float>(op.record.ints[2 + index]));
        scale = set(op.record.floats[3 + index]);
    }

    // Real values of tokens first .. first + count - 1, one every lines(channels), zeros between them.
    void copy(int64_t first, int64_t count, float* to) const {
        const Finish finish(false, 1.0f, Codes(0, 0, 255));
        for (int64_t i = 0; i < count; ++i, to += lines(channels)) {
            const uint8_t* from = data + (first + i) * pitch;
            for (int64_t c = channels; c < lines(channels); ++c) to[c] = 0.0f;
            if (codes)
                finish(CodeSource{from, zero, scale}, reinterpret_cast<uint8_t*>(to), channels);
            else
                finish(RealSource{reinterpret_cast<const float*>(from)}, reinterpret_cast<uint8_t*>(to), channels);
        }
    }
};

// The additive mask of one head.
struct Mask {
    const uint8_t* data = nullptr;
    int64_t query_pitch = 0, key_pitch = 4;

    Mask(const Operation& op, const Context& context, int64_t n, int64_t head) {
        const AttentionState& state = *static_cast<const AttentionState*>(op.state);
        if (const Tensor* x = op.input[3]) {
            data = address(context, *x, n) + (x->height == 1 ? 0 : head * x->row_pitch);
            query_pitch = x->width == 1 ? 0 : x->pixel_pitch;
            key_pitch = x->channel_pitch;
        } else if (state.mask.bytes()) {
            const int64_t row = int64_t(op.input[1]->width) * 4, rows = op.record.ints[6];
            data = state.mask.as<const uint8_t>() + (op.record.ints[5] == 1 ? 0 : head * rows * row);
            query_pitch = rows == 1 ? 0 : row;
        }
    }

    float at(int64_t query, int64_t key) const {
        float v;
        memcpy(&v, data + query * query_pitch + key * key_pitch, 4);
        return v;
    }

    // Of queries first .. first + LANES - 1, those from `count` on repeat the last.
    F of(int64_t first, int64_t count, int64_t key) const {
        if (query_pitch == 0) return set(at(0, key));
        alignas(64) float all[LANES];
        for (int64_t i = 0; i < LANES; ++i) all[i] = at(first + i < count ? first + i : count - 1, key);
        return load(all);
    }
};

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

// Adds the mask to the scores of `vectors` vectors of queries; keys behind a query count as -inf where causal.
void add_mask(const Mask& mask, const float* ramp, int64_t first, int64_t queries, int64_t vectors, int64_t keys,
              bool causal, float* scores) {
    for (int64_t key = 0; key < keys; ++key) {
        for (int64_t k = 0; k < vectors; ++k, scores += LANES) {
            F v = load(scores);
            if (mask.data) v = add(v, mask.of(first + k * LANES, queries, key));
            const int64_t behind = key - first - k * LANES;  // lanes below it do not see the key
            if (causal && behind > 0) v = add(v, load(ramp + (behind < LANES ? LANES - behind : 0)));
            store(scores, v);
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

struct ScaledSource {
    const float* data;
    F factor;
    F full(int64_t i) const { return mul(load(data + i), factor); }
    F part(int64_t i, int64_t n) const { return mul(load_partial(data + i, n), factor); }
};

// One block of queries of a head whose keys and values have been copied.
void head_block(const Operation& op, const Context& context, const Shape& shape, const Scratch& scratch, int64_t n,
                int64_t head, int64_t block) {
    const Tensor& y = *op.output;
    const bool causal = op.record.ints[1] != 0;
    const int64_t first = block * QUERIES;
    const int64_t count = shape.queries - first < QUERIES ? shape.queries - first : QUERIES;
    const int64_t vectors = (count + LANES - 1) / LANES, wide = vectors * LANES;
    // Keys behind the last query would all get weight zero.
    const int64_t keys = causal && first + count < shape.keys ? first + count : shape.keys;

    Operand(op, context, 0, n, head, shape.depth).copy(first, count, scratch.tokens);
    turn_queries(scratch.tokens, count, lines(shape.depth), wide, op.record.floats[0], scratch.query);
    product({scratch.keys, lines(shape.depth), 1}, {scratch.query, wide}, {scratch.scores, wide}, keys, vectors,
            shape.depth);
    const Mask mask(op, context, n, head);
    if (mask.data || causal)
        add_mask(mask, scratch.ramp, first, shape.queries, vectors, keys, causal, scratch.scores);
    soften(scratch.scores, keys, vectors, scratch.factor);
    product({scratch.scores, 1, wide}, {scratch.values, lines(shape.width)}, {scratch.result, lines(shape.width)},
            count, (shape.width + LANES - 1) / LANES, keys);
    const Finish finish(y.type == FXQ_U8, op.record.floats[2], codes_for(op.record, y));
    uint8_t* out = address(context, y, n) + first * y.pixel_pitch + head * shape.width * y.size;
    for (int64_t i = 0; i < count; ++i)
        finish(ScaledSource{scratch.result + i * lines(shape.width), set(scratch.factor[i])}, out + i * y.pixel_pitch,
               shape.width);
}

void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const Shape shape(op);
    const Scratch scratch(shape, reinterpret_cast<float*>(context.scratch));
    for (int64_t i = 0; i < 2 * LANES; ++i) scratch.ramp[i] = i < LANES ? -INFINITY : 0.0f;
    int64_t copied = -1;
    each_row(context.images, shape.heads * shape.blocks, tasks, begin, end, [&](int64_t n, int64_t part) {
        const int64_t head = part / shape.blocks;
        if (copied != n * shape.heads + head) {
            copied = n * shape.heads + head;
            Operand(op, context, 1, n, head, shape.depth).copy(0, shape.keys, scratch.keys);
            Operand(op, context, 2, n, head, shape.width).copy(0, shape.keys, scratch.values);
        }
        head_block(op, context, shape, scratch, n, head, part % shape.blocks);
        if (part == 0) write_halo(*op.output, address(context, *op.output, n), 0, 1);
    });
}

}  // namespace

extern const Kernel attention_kernel = {prepare, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
