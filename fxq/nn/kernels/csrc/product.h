// Sums of codes times weights.
#ifndef FXQ_DYNAMIC_PRODUCT_H
#define FXQ_DYNAMIC_PRODUCT_H

#include <cstring>

#include "vectors.h"

namespace fxq {

constexpr int MOST_ROWS = 4;    // of a group
constexpr int MOST_BLOCKS = 4;  // of a strip

constexpr int AHEAD = 1024;     // bytes of weights

#define FXQ_UNROLL _Pragma("GCC unroll 4")

// sums[row][block] for the R rows of a group and the B blocks of a strip. The loops over rows and blocks have to be
// unrolled: only then the sums stay in registers. Four rows by four blocks keep the dot-product unit busy (measured on
// Zen 4: 235 products a nanosecond of 238) and read the weights in one stream; fewer rows wait for them anyway, and
// fetching them ahead would only get into the way.
template <int R, int B>
FXQ_TARGET void tile(const uint8_t* codes, int64_t depth, const int8_t* weight, int32_t* sums) {
    __m512i acc[R][B];
    FXQ_UNROLL for (int r = 0; r < R; ++r) {
        FXQ_UNROLL for (int b = 0; b < B; ++b) acc[r][b] = _mm512_setzero_si512();
    }
    for (int64_t k = 0; k < depth; k += 4, codes += 4 * R, weight += 4 * B * LANES) {
        __m512i w[B];
        FXQ_UNROLL for (int b = 0; b < B; ++b) {
            w[b] = _mm512_loadu_si512(weight + 4 * b * LANES);
            if (R == 4) _mm_prefetch(reinterpret_cast<const char*>(weight) + 4 * b * LANES + AHEAD, _MM_HINT_T0);
        }
        FXQ_UNROLL for (int r = 0; r < R; ++r) {
            int32_t four;
            std::memcpy(&four, codes + 4 * r, 4);
            const __m512i x = _mm512_set1_epi32(four);
            FXQ_UNROLL for (int b = 0; b < B; ++b) acc[r][b] = _mm512_dpbusd_epi32(acc[r][b], x, w[b]);
        }
    }
    FXQ_UNROLL for (int r = 0; r < R; ++r) {
        FXQ_UNROLL for (int b = 0; b < B; ++b) _mm512_storeu_si512(sums + (r * B + b) * LANES, acc[r][b]);
    }
}

template <int B>
FXQ_TARGET void strip_of(const uint8_t* codes, int64_t depth, const int8_t* weight, int64_t rows, int32_t* sums) {
    switch (rows) {
        case 1: return tile<1, B>(codes, depth, weight, sums);
        case 2: return tile<2, B>(codes, depth, weight, sums);
        case 3: return tile<3, B>(codes, depth, weight, sums);
        default: return tile<4, B>(codes, depth, weight, sums);
    }
}

// sums[row][block][16] of a group of rows and one strip.
FXQ_TARGET inline void multiply(const uint8_t* codes, int64_t depth, const int8_t* weight, int64_t blocks, int64_t rows,
                                int32_t* sums) {
    if (blocks == 4)
        strip_of<4>(codes, depth, weight, rows, sums);
    else
        strip_of<3>(codes, depth, weight, rows, sums);
}

// The floats of 16 sums less the zero point's share, times the weights' scale.
FXQ_INLINE __m512 scaled(const FxqWeight& weight, int64_t at, const int32_t* sums, int32_t zero) {
    const __m512i own = _mm512_mullo_epi32(_mm512_loadu_si512(weight.sums + at), _mm512_set1_epi32(zero));
    const __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(sums), own);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(weight.scale + at));
}

}  // namespace fxq
#endif
