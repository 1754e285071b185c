// Vectors of bytes for the depthwise convolution: CHUNK channels, and dot products of four taps a channel.
//
// Four taps are turned around by unpacking bytes, then words: part v of a chunk holds, in each of its 128-bit lanes,
// the channels 4 v .. 4 v + 3 of that lane's 16. Packing words, then bytes, restores the order.
#ifndef FXQ_DEPTHWISE_VECTOR_H
#define FXQ_DEPTHWISE_VECTOR_H

#include "vec.h"

namespace fxq {
namespace FXQ_NS {

constexpr int64_t CHUNK = 4 * LANES;

// The channel, counted from the chunk's first, in `lane` of part `part`.
inline int64_t channel_of(int64_t part, int64_t lane) { return lane / 4 * 16 + part * 4 + lane % 4; }

#if defined(FXQ_AVX512VNNI)

inline I load_chunk(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline I load_weights(const int8_t* p) { return _mm512_load_si512(p); }
inline void turn(I a, I b, I c, I d, I* part) {
    const I ab = _mm512_unpacklo_epi8(a, b), AB = _mm512_unpackhi_epi8(a, b);
    const I cd = _mm512_unpacklo_epi8(c, d), CD = _mm512_unpackhi_epi8(c, d);
    part[0] = _mm512_unpacklo_epi16(ab, cd);
    part[1] = _mm512_unpackhi_epi16(ab, cd);
    part[2] = _mm512_unpacklo_epi16(AB, CD);
    part[3] = _mm512_unpackhi_epi16(AB, CD);
}
inline I dot(I sum, I inputs, I weights) { return _mm512_dpbusd_epi32(sum, inputs, weights); }
// Writes a part's sums in the order of channels.
inline void put_part(int32_t* sums, int64_t part, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 4 * part), _mm512_castsi512_si128(v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 16 + 4 * part), _mm512_extracti32x4_epi32(v, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 32 + 4 * part), _mm512_extracti32x4_epi32(v, 2));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 48 + 4 * part), _mm512_extracti32x4_epi32(v, 3));
}

#else

inline I load_chunk(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline I load_weights(const int8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
inline void turn(I a, I b, I c, I d, I* part) {
    const I ab = _mm256_unpacklo_epi8(a, b), AB = _mm256_unpackhi_epi8(a, b);
    const I cd = _mm256_unpacklo_epi8(c, d), CD = _mm256_unpackhi_epi8(c, d);
    part[0] = _mm256_unpacklo_epi16(ab, cd);
    part[1] = _mm256_unpackhi_epi16(ab, cd);
    part[2] = _mm256_unpacklo_epi16(AB, CD);
    part[3] = _mm256_unpackhi_epi16(AB, CD);
}
#if defined(FXQ_AVXVNNI)
inline I dot(I sum, I inputs, I weights) { return _mm256_dpbusd_avx_epi32(sum, inputs, weights); }
#else
// Pairs of whole products overflow 16 bits: the inputs' upper bit is multiplied apart, see conv_block_avx2.h.
inline I dot(I sum, I inputs, I weights) {
    const I ones = _mm256_set1_epi16(1), rest = _mm256_set1_epi8(127);
    const I low = _mm256_maddubs_epi16(_mm256_and_si256(inputs, rest), weights);
    const I high = _mm256_maddubs_epi16(_mm256_andnot_si256(rest, inputs), weights);
    return add(add(sum, _mm256_madd_epi16(low, ones)), _mm256_madd_epi16(high, ones));
}
#endif
inline void put_part(int32_t* sums, int64_t part, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 4 * part), _mm256_castsi256_si128(v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 16 + 4 * part), _mm256_extracti128_si256(v, 1));
}

#endif

}  // namespace FXQ_NS
}  // namespace fxq
#endif
