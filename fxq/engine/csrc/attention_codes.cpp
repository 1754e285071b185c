// ATTENTION_U8: attention of codes. Products are exact sums of bytes; the exponentials become u16 of step 1/65535, whose
// upper and lower bytes meet the values one after the other.
//
// The scores of a block lie as [key][query], as in attention.cpp. Products take four bytes at a time, so a block's queries
// and a head's values are turned into panels of four channels, or four keys, for each lane; the exponentials of four keys
// come together in one lane by shifts alone. Zero points go into where the sums start.
#include "attention_parts.h"
#include "bytes.h"
#include "dot_product.h"
#include "finish.h"
#include "rows.h"
#include "turn.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t VECTORS = LANES == 16 ? 3 : 2;  // of queries in a block
constexpr int64_t QUERIES = VECTORS * LANES;
constexpr int32_t HALF = 128;  // between a code and the signed byte that stands for it

int64_t fours(int64_t count) { return (count + 3) / 4; }
int64_t lanes(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

struct Scratch : Parts64 {
    int32_t* const query;        // [4 channels][query] of s8
    int32_t* const query_start;  // of each query: what its channels add to every sum
    uint8_t* const keys;         // [key][channel]
    int32_t* const key_start;
    float* const scores;    // [key][query]
    int32_t* const upper;   // bytes of the powers: [4 keys][query] of u8
    int32_t* const lower;
    int32_t* const upper_totals;  // of each query
    int32_t* const lower_totals;
    int32_t* const values;  // [4 keys][channel] of s8
    float* const result;    // [query][channel]

    Scratch(const AttentionShape& shape, uint8_t* base)
        : Parts64(base),
          query(take<int32_t>(lanes(fours(shape.depth)) * QUERIES)),
          query_start(take<int32_t>(QUERIES)),
          keys(take<uint8_t>(shape.keys * fours(shape.depth) * 4)),
          key_start(take<int32_t>(shape.keys)),
          scores(take<float>(fours(shape.keys) * 4 * QUERIES)),
          upper(take<int32_t>(fours(shape.keys) * QUERIES)),
          lower(take<int32_t>(fours(shape.keys) * QUERIES)),
          upper_totals(take<int32_t>(QUERIES)),
          lower_totals(take<int32_t>(QUERIES)),
          values(take<int32_t>(fours(shape.keys) * lanes(shape.width))),
          result(take<float>(QUERIES * lanes(shape.width))) {}
};

const char* prepare(Operation& op) {
    return prepare_attention(op, Scratch(AttentionShape(op, QUERIES), nullptr).total());
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    return attention_tasks(AttentionShape(op, QUERIES), images, threads);
}

// Codes q as the signed bytes q - 128: their upper bits are turned over.
I signed_bytes(I codes) {
    const I upper = set_int(static_cast<int32_t>(0x80808080u));
    return sub(either(codes, upper), both(codes, upper));
}

// The channels of a block's queries. Missing queries, and channels beyond the last, are signed zero.
void turn_queries(const uint8_t* from, int64_t pitch, const Block& block, int64_t depth, int32_t zero_of_keys,
                  const Scratch& scratch) {
    const int64_t steps = fours(depth);
    const I all = set_int(-1), rest = set_int(depth % 4 ? (1 << (8 * (depth % 4))) - 1 : -1);
    for (int64_t first = 0; first < block.wide; first += LANES) {
        I sum = set_int(0);
        for (int64_t c = 0; c < steps; c += LANES) {
            F words[LANES];
            for (int64_t i = 0; i < LANES; ++i) {
                I word = set_int(static_cast<int32_t>(0x80808080u));
                if (first + i < block.count) memcpy(&word, from + (first + i) * pitch + c * 4, sizeof word);
                words[i] = as_float(signed_bytes(word));
            }
            turn(words);
            for (int64_t i = 0; i < LANES && c + i < steps; ++i) {
                const I word = both(as_int(words[i]), c + i == steps - 1 ? rest : all);
                store_int(scratch.query + (c + i) * block.wide + first, word);
                add_dot(&sum, set_int(0x01010101), word);
            }
        }
        alignas(64) int32_t sums[LANES];
        store_int(sums, sum);
        for (int64_t i = 0; i < LANES; ++i) scratch.query_start[first + i] = -zero_of_keys * sums[i];
    }
}

// The keys of a head, and for each the part of the sums that is the same for all queries.
void copy_keys(const uint8_t* from, int64_t pitch, const AttentionShape& shape, int32_t zero_of_queries,
               int32_t zero_of_keys, const Scratch& scratch) {
    uint8_t* to = scratch.keys;
    for (int64_t key = 0; key < shape.keys; ++key, from += pitch, to += fours(shape.depth) * 4) {
        copy_bytes(to, from, shape.depth);
        int32_t sum = 0;
        for (int64_t c = 0; c < shape.depth; ++c) sum += from[c];
        const int32_t centred = sum - static_cast<int32_t>(shape.depth) * zero_of_keys;
        scratch.key_start[key] = (HALF - zero_of_queries) * centred;
    }
}

// The values of a head; keys beyond the last repeat it, and meet powers of zero.
void turn_values(const uint8_t* from, int64_t pitch, const AttentionShape& shape, const Scratch& scratch) {
    const int64_t wide = lanes(shape.width);
    for (int64_t key = 0; key < shape.keys; key += 4) {
        const uint8_t* row[4];
        for (int64_t i = 0; i < 4; ++i) row[i] = from + (key + i < shape.keys ? key + i : shape.keys - 1) * pitch;
        for (int64_t c = 0; c < wide; c += LANES) {
            const int64_t n = shape.width - c;
            I word = bytes_partial(row[0] + c, n);
            for (int i = 1; i < 4; ++i) word = either(word, shift_left(bytes_partial(row[i] + c, n), 8 * i));
            store_int(scratch.values + key / 4 * wide + c, signed_bytes(word));
        }
    }
}

// Scores to rne(65535 exp(score - maximum)), in two bytes, four keys in a lane, and the sums of these.
template <int vectors>
void soften(const Scratch& scratch, int64_t keys) {
    F most[vectors];
    I uppers[vectors], lowers[vectors];
    for (int k = 0; k < vectors; ++k) most[k] = set(LOWEST), uppers[k] = lowers[k] = set_int(0);
    for (int64_t key = 0; key < keys; ++key)
        for (int k = 0; k < vectors; ++k)
            most[k] = maximum(load(scratch.scores + (key * vectors + k) * LANES), most[k]);
    const F step = set(65535.0f);
    const I low = set_int(255), ones = set_int(0x01010101);
    for (int64_t key = 0; key < keys; key += 4) {
        for (int k = 0; k < vectors; ++k) {
            I upper = set_int(0), lower = set_int(0);
            for (int i = 0; i < 4; ++i) {
                if (key + i >= keys) break;
                const F score = load(scratch.scores + ((key + i) * vectors + k) * LANES);
                const I power = to_int(mul(exponential(sub(score, most[k])), step));
                upper = either(upper, shift_left(shift_right(power, 8), 8 * i));
                lower = either(lower, shift_left(both(power, low), 8 * i));
            }
            add_dot(&uppers[k], upper, ones);
            add_dot(&lowers[k], lower, ones);
            store_int(scratch.upper + (key / 4 * vectors + k) * LANES, upper);
            store_int(scratch.lower + (key / 4 * vectors + k) * LANES, lower);
        }
    }
    for (int k = 0; k < vectors; ++k) {
        store_int(scratch.upper_totals + k * LANES, uppers[k]);
        store_int(scratch.lower_totals + k * LANES, lowers[k]);
    }
}

void soften(const Scratch& scratch, int64_t keys, int64_t vectors) {
    if (vectors == 1) return soften<1>(scratch, keys);
    if (vectors == 2) return soften<2>(scratch, keys);
    soften<VECTORS>(scratch, keys);
}

// One block of queries of a head whose keys and values stand in the scratch.
void head_block(const Operation& op, const Context& context, const AttentionShape& shape, const Scratch& scratch,
                int64_t n, int64_t head, const Block& block) {
    const Tensor &q = *op.input[0], &y = *op.output;
    const int32_t* zero = op.record.ints + 2;
    const uint8_t* from = address(context, q, n) + head * shape.depth + block.first * q.pixel_pitch;
    turn_queries(from, q.pixel_pitch, block, shape.depth, zero[1], scratch);
    const F factor = set(op.record.floats[0]);
    dot_product({scratch.keys, fours(shape.depth) * 4, 4}, {scratch.query, block.wide}, block.keys, block.vectors,
                fours(shape.depth),
                [&](int64_t key, int64_t k) {
                    return add(set_int(scratch.key_start[key]), load_int(scratch.query_start + k * LANES));
                },
                [&](int64_t key, int64_t k, I sum) {
                    store(scratch.scores + key * block.wide + k * LANES, mul(to_float(sum), factor));
                });
    add_mask(op, context, n, head, block, shape.queries, scratch.scores);
    soften(scratch, block.keys, block.vectors);
    const int64_t wide = lanes(shape.width);
    const int32_t shift = HALF - zero[2];
    auto mix = [&](const int32_t* powers, const int32_t* totals, const auto& end) {
        dot_product({reinterpret_cast<const uint8_t*>(powers), 4, block.wide * 4}, {scratch.values, wide}, block.count,
                    wide / LANES, fours(block.keys),
                    [&](int64_t query, int64_t) { return set_int(shift * totals[query]); },
                    [&](int64_t query, int64_t k, I sum) {
                        float* place = scratch.result + query * wide + k * LANES;
                        store(place, end(place, to_float(sum)));
                    });
    };
    const F radix = set(256.0f);
    mix(scratch.upper, scratch.upper_totals, [](const float*, F sum) { return sum; });
    mix(scratch.lower, scratch.lower_totals, [&](const float* place, F sum) { return fma(load(place), radix, sum); });
    const Finish finish(y.type == FXQ_U8, op.record.floats[2], codes_for(op.record, y));
    uint8_t* out = address(context, y, n) + block.first * y.pixel_pitch + head * shape.width * y.size;
    for (int64_t i = 0; i < block.count; ++i) {
        const int32_t total = scratch.upper_totals[i] * 256 + scratch.lower_totals[i];
        const float mean = total > 0 ? op.record.floats[1] / static_cast<float>(total) : 0.0f;
        finish(ScaledSource{{scratch.result + i * wide}, {set(mean)}}, out + i * y.pixel_pitch, shape.width);
    }
}

void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const AttentionShape shape(op, QUERIES);
    const Scratch scratch(shape, context.scratch);
    const Tensor &k = *op.input[1], &v = *op.input[2];
    const int32_t* zero = op.record.ints + 2;
    int64_t copied = -1;
    each_row(context.images, shape.heads * shape.blocks, tasks, begin, end, [&](int64_t n, int64_t part) {
        const int64_t head = part / shape.blocks;
        if (copied != n * shape.heads + head) {
            copied = n * shape.heads + head;
            copy_keys(address(context, k, n) + head * shape.depth, k.pixel_pitch, shape, zero[0], zero[1], scratch);
            turn_values(address(context, v, n) + head * shape.width, v.pixel_pitch, shape, scratch);
        }
        head_block(op, context, shape, scratch, n, head, Block(op, shape, part % shape.blocks));
        if (part == 0) write_halo(*op.output, address(context, *op.output, n), 0, 1);
    });
}

}  // namespace

extern const Kernel code_attention_kernel = {prepare, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
