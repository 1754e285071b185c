// Sums of products of bytes: to each lane, four products of u8 with s8. Exact on every instruction set.
#ifndef FXQ_DOT_H
#define FXQ_DOT_H

#include <string.h>

#include "vec.h"

namespace fxq {
namespace FXQ_NS {

#if defined(FXQ_AVX512VNNI)

// Assembly, because g++ 12 copies the accumulators of the intrinsic to and from memory in every step.
FXQ_INLINE void add_dot(I* sum, I inputs, I weights) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(inputs), "v"(weights));
}

#elif defined(FXQ_AVXVNNI)

FXQ_INLINE void add_dot(I* sum, I inputs, I weights) { *sum = _mm256_dpbusd_avx_epi32(*sum, inputs, weights); }

#elif defined(FXQ_AVX2)

// vpmaddubsw saturates pairs to 16 bits: the inputs are cut into their upper bit and the rest, whose pairs stay in range
// with any weights.
FXQ_INLINE void add_dot(I* sum, I inputs, I weights) {
    const __m256i ones = _mm256_set1_epi16(1), rest = _mm256_set1_epi8(127);
    const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(inputs, rest), weights);
    const __m256i high = _mm256_maddubs_epi16(_mm256_andnot_si256(rest, inputs), weights);
    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(low, ones));
    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(high, ones));
}

#else

FXQ_INLINE void add_dot(I* sum, I inputs, I weights) {
    uint8_t u[4];
    int8_t s[4];
    memcpy(u, &inputs, 4);
    memcpy(s, &weights, 4);
    *sum += u[0] * s[0] + u[1] * s[1] + u[2] * s[2] + u[3] * s[3];
}

#endif

}  // namespace FXQ_NS
}  // namespace fxq
#endif
