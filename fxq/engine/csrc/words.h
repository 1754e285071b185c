// Vectors of 16-bit lanes: twice LANES of them.
#ifndef FXQ_WORDS_H
#define FXQ_WORDS_H

#include <immintrin.h>
#include <string.h>

#include "vec.h"

namespace fxq {
namespace FXQ_NS {

constexpr int64_t WORDS = 2 * LANES;

//   add16 sub16 times4       of s16
//   words words_partial      u8 -> s16; of the partial ones the first n lanes, the others are zero
//   pair_words               s8 -> s16: of each four bytes the first two, or the last two
//   multiply                 the low 32 bits of products of 32-bit lanes
#if defined(FXQ_AVX512VNNI)

FXQ_INLINE I add16(I a, I b) { return _mm512_add_epi16(a, b); }
FXQ_INLINE I sub16(I a, I b) { return _mm512_sub_epi16(a, b); }
FXQ_INLINE I times4(I a) { return _mm512_slli_epi16(a, 2); }
FXQ_INLINE I multiply(I a, I b) { return _mm512_mullo_epi32(a, b); }
FXQ_INLINE void store_words(int16_t* p, I v) { _mm512_store_si512(p, v); }
FXQ_INLINE I words(const uint8_t* p) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
FXQ_INLINE I pair_words(const int8_t* p, int64_t pair) {
    const I upper = _mm512_set4_epi32(0x0d800c80, 0x09800880, 0x05800480, 0x01800080);  // bytes 0, 1 to those of sign
    const I at = pair ? _mm512_add_epi32(upper, _mm512_set1_epi32(0x02000200)) : upper;
    return _mm512_srai_epi16(_mm512_shuffle_epi8(_mm512_load_si512(p), at), 8);
}
FXQ_INLINE I words_partial(const uint8_t* p, int64_t n) {
    return _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(n >= 32 ? ~0u : (1u << n) - 1, p));
}

#else

FXQ_INLINE I add16(I a, I b) { return _mm256_add_epi16(a, b); }
FXQ_INLINE I sub16(I a, I b) { return _mm256_sub_epi16(a, b); }
FXQ_INLINE I times4(I a) { return _mm256_slli_epi16(a, 2); }
FXQ_INLINE I multiply(I a, I b) { return _mm256_mullo_epi32(a, b); }
FXQ_INLINE void store_words(int16_t* p, I v) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), v); }
FXQ_INLINE I words(const uint8_t* p) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
FXQ_INLINE I pair_words(const int8_t* p, int64_t pair) {
    const I upper = _mm256_broadcastsi128_si256(_mm_set_epi32(0x0d800c80, 0x09800880, 0x05800480, 0x01800080));
    const I at = pair ? _mm256_add_epi32(upper, _mm256_set1_epi32(0x02000200)) : upper;
    return _mm256_srai_epi16(_mm256_shuffle_epi8(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)), at), 8);
}
FXQ_INLINE I words_partial(const uint8_t* p, int64_t n) {
    alignas(16) uint8_t bytes[16] = {};
    memcpy(bytes, p, static_cast<size_t>(n));
    return words(bytes);
}

#endif

}  // namespace FXQ_NS
}  // namespace fxq
#endif
