// The weights of Winograd's transforms, made from the panels of the direct convolution, a row of positions at a time.
#ifndef FXQ_WINOGRAD_WEIGHTS_H
#define FXQ_WINOGRAD_WEIGHTS_H

#include "conv_state.h"
#include "winograd.h"

namespace fxq {
namespace FXQ_NS {

constexpr int64_t QUAD = 4 * BLOCK;  // bytes of four input channels and the outputs of a block
constexpr int64_t PAIR = 2 * BLOCK;  // numbers of two

inline int64_t quads_of(int64_t channels) { return (channels + 3) / 4; }

// Bytes of a block's transformed weights, [pair][32 outputs][2] of s16, of one position, and of a row of them.
inline int64_t position_bytes(int64_t channels) { return quads_of(channels) * QUAD * 2; }
inline int64_t row_bytes(int64_t channels) { return PATCH * position_bytes(channels); }

template <int row>
void transform_weights_at(const int8_t* panel, int64_t quads, int16_t* to) {
    const int64_t tap = quads * QUAD, step = quads * 2 * PAIR;  // between taps; between positions
    for (int64_t i = 0; i < quads * QUAD; i += 4 * LANES) {
        const int64_t quad = i / QUAD, lane = i % QUAD / 4;
        for (int64_t pair = 0; pair < 2; ++pair) {
            const auto column = [&](int64_t j) {
                const int8_t* const w = panel + j * tap + i;
                return transform_weight<row>(pair_words(w, pair), pair_words(w + 3 * tap, pair),
                                             pair_words(w + 6 * tap, pair));
            };
            const I a = column(0), b = column(1), c = column(2);
            int16_t* const p = to + (2 * quad + pair) * PAIR + 2 * lane;
            store_words(p, transform_weight<0>(a, b, c)), store_words(p + step, transform_weight<1>(a, b, c));
            store_words(p + 2 * step, transform_weight<2>(a, b, c)), store_words(p + 3 * step, transform_weight<3>(a, b, c));
            store_words(p + 4 * step, transform_weight<4>(a, b, c)), store_words(p + 5 * step, transform_weight<5>(a, b, c));
        }
    }
}

// A row of positions of a block's weights, [column][pair][32 outputs][2], of its panel [tap][quad][32 outputs][4].
inline void transform_weights(int64_t row, const int8_t* panel, int64_t channels, int8_t* to) {
    using Run = void (*)(const int8_t*, int64_t, int16_t*);
    static const Run RUNS[PATCH] = {transform_weights_at<0>, transform_weights_at<1>, transform_weights_at<2>,
                                    transform_weights_at<3>, transform_weights_at<4>, transform_weights_at<5>};
    RUNS[row](panel, quads_of(channels), reinterpret_cast<int16_t*>(to));
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
