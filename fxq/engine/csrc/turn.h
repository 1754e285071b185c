// Turning LANES vectors around: element j of vector i becomes element i of vector j.
#ifndef FXQ_TURN_H
#define FXQ_TURN_H

#include "vec.h"

namespace fxq {
namespace FXQ_NS {

#if defined(FXQ_AVX512VNNI)

// Pairs, then pairs of pairs within 128-bit lanes, then whole lanes.
inline void turn(F (&v)[16]) {
    __m512d pairs[16];
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_castps_pd(_mm512_unpacklo_ps(v[i], v[i + 1]));
        pairs[i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(v[i], v[i + 1]));
    }
    F fours[16];  // fours[4 g + j]: column j, 4 + j, 8 + j, 12 + j of rows 4 g .. 4 g + 3
    for (int g = 0; g < 16; g += 4) {
        fours[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[g], pairs[g + 2]));
        fours[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[g], pairs[g + 2]));
        fours[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[g + 1], pairs[g + 3]));
        fours[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[g + 1], pairs[g + 3]));
    }
    for (int j = 0; j < 4; ++j) {
        const F even = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0x88);  // lanes 0, 2 of rows 0..3, of rows 4..7
        const F odd = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0xdd);
        const F even_next = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0x88);
        const F odd_next = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0xdd);
        v[j] = _mm512_shuffle_f32x4(even, even_next, 0x88);
        v[8 + j] = _mm512_shuffle_f32x4(even, even_next, 0xdd);
        v[4 + j] = _mm512_shuffle_f32x4(odd, odd_next, 0x88);
        v[12 + j] = _mm512_shuffle_f32x4(odd, odd_next, 0xdd);
    }
}

#else

inline void turn(F (&v)[LANES]) {
    alignas(64) float all[LANES][LANES], turned[LANES][LANES];
    for (int64_t i = 0; i < LANES; ++i) store(all[i], v[i]);
    for (int64_t i = 0; i < LANES; ++i)
        for (int64_t j = 0; j < LANES; ++j) turned[j][i] = all[i][j];
    for (int64_t i = 0; i < LANES; ++i) v[i] = load(turned[i]);
}

#endif

}  // namespace FXQ_NS
}  // namespace fxq
#endif
