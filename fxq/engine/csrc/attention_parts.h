// What attention of real values and of codes share: shapes, the additive mask, the caller's causal wish.
#ifndef FXQ_ATTENTION_PARTS_H
#define FXQ_ATTENTION_PARTS_H

#include <float.h>
#include <math.h>
#include <string.h>

#include <new>

#include "kernel.h"
#include "vec.h"

namespace fxq {
namespace FXQ_NS {

constexpr int64_t LEAST_OF_ATTENTION = 1 << 16;  // multiplications of a task
constexpr float LOWEST = -FLT_MAX;               // of a maximum, so that a query without keys gives zeros

struct AttentionShape {
    int64_t heads, queries, keys, depth, width;  // depth: channels of a head of q and k; width: of v
    int64_t block, blocks;                       // queries of a block, blocks of a head

    AttentionShape(const Operation& op, int64_t queries_of_a_block)
        : heads(op.record.ints[0]),
          queries(op.input[0]->width),
          keys(op.input[1]->width),
          depth(op.input[0]->channels / heads),
          width(op.input[2]->channels / heads),
          block(queries_of_a_block),
          blocks((queries + block - 1) / block) {}
};

// Some queries of a head, in `vectors` vectors, and the keys that they may see.
struct Block {
    int64_t first, count, vectors, wide, keys;
    bool causal;

    Block(const Operation& op, const AttentionShape& shape, int64_t number)
        : first(number * shape.block),
          count(shape.queries - first < shape.block ? shape.queries - first : shape.block),
          vectors((count + LANES - 1) / LANES),
          wide(vectors * LANES),
          keys(shape.keys),
          causal(op.record.ints[1] != 0) {
        if (causal && first + count < keys) keys = first + count;  // those behind the last query would get weight zero
    }
};

inline int64_t attention_tasks(const AttentionShape& shape, int64_t images, int threads) {
    const int64_t cost = shape.block * shape.keys * (shape.depth + shape.width);
    return split(images * shape.heads * shape.blocks, cost, LEAST_OF_ATTENTION, threads);
}

struct AttentionState final : State {
    Buffer mask;
};

// Makes the state of an operation that uses so many bytes of scratch.
inline const char* prepare_attention(Operation& op, int64_t scratch_bytes) {
    AttentionState* state = new (std::nothrow) AttentionState;
    op.state = state;
    if (!state) return "no memory";
    state->scratch_bytes = scratch_bytes;
    if (op.input[3] || !op.constant[0].data) return nullptr;
    state->packed_bytes = op.constant[0].bytes;
    return state->mask.copy(op.constant[0].data, op.constant[0].bytes) ? nullptr : "no memory";
}

// Takes parts of 64-byte lines from the scratch; only counts where there is none yet.
class Parts64 {
   public:
    explicit Parts64(uint8_t* base) : base_(base) {}
    template <class T>
    T* take(int64_t count) {
        uint8_t* const part = base_ ? base_ + total_ : nullptr;
        total_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        return reinterpret_cast<T*>(part);
    }
    int64_t total() const { return total_; }

   private:
    uint8_t* const base_;
    int64_t total_ = 0;
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

    // Of queries first .. first + LANES - 1; those from `count` on repeat the last.
    F of(int64_t first, int64_t count, int64_t key) const {
        if (query_pitch == 0) return set(at(0, key));
        alignas(64) float all[LANES];
        for (int64_t i = 0; i < LANES; ++i) all[i] = at(first + i < count ? first + i : count - 1, key);
        return load(all);
    }
};

// Adds the mask to the scores of a block, [key][query]; keys behind a query count as -inf where causal.
inline void add_mask(const Operation& op, const Context& context, int64_t n, int64_t head, const Block& block,
                     int64_t queries, float* scores) {
    const Mask mask(op, context, n, head);
    if (!mask.data && !block.causal) return;
    alignas(64) float ramp[2 * LANES];
    for (int64_t i = 0; i < 2 * LANES; ++i) ramp[i] = i < LANES ? -INFINITY : 0.0f;
    for (int64_t key = 0; key < block.keys; ++key) {
        for (int64_t k = 0; k < block.vectors; ++k, scores += LANES) {
            F v = load(scores);
            if (mask.data) v = add(v, mask.of(block.first + k * LANES, queries, key));
            const int64_t behind = key - block.first - k * LANES;  // lanes below it do not see the key
            if (block.causal && behind > 0) v = add(v, load(ramp + (behind < LANES ? LANES - behind : 0)));
            store(scores, v);
        }
    }
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
