// The vector functions on AVX2 and FMA: 8 lanes.
#ifndef FXQ_VEC_AVX2_H
#define FXQ_VEC_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace fxq {
namespace FXQ_NS {

constexpr int64_t LANES = 8;
using F = __m256;
using I = __m256i;
using M = __m256;

inline __m256i first(int64_t n) {
    const int32_t count = static_cast<int32_t>(n > 8 ? 8 : n);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline F set(float v) { return _mm256_set1_ps(v); }
inline I set_int(int32_t v) { return _mm256_set1_epi32(v); }
inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline F load_partial(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline void store_partial(float* p, F v, int64_t n) { _mm256_maskstore_ps(p, first(n), v); }
inline I load_int(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline I load_int_partial(const int32_t* p, int64_t n) { return _mm256_maskload_epi32(p, first(n)); }
inline void store_int(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline I bytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline I bytes_partial(const uint8_t* p, int64_t n) {
    if (n >= 8) return bytes(p);
    uint8_t all[8] = {};
    if (n > 0) memcpy(all, p, static_cast<size_t>(n));
    return bytes(all);
}
inline void put_bytes(uint8_t* p, I v) {
    const __m256i low = _mm256_and_si256(v, _mm256_set1_epi32(255));
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}
inline void put_bytes_partial(uint8_t* p, I v, int64_t n) {
    if (n >= 8) return put_bytes(p, v);
    uint8_t all[8];
    put_bytes(all, v);
    if (n > 0) memcpy(p, all, static_cast<size_t>(n));
}
inline F to_float(I v) { return _mm256_cvtepi32_ps(v); }
inline I to_int(F v) { return _mm256_cvtps_epi32(v); }

inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F minimum(F a, F b) { return _mm256_min_ps(a, b); }
inline F maximum(F a, F b) { return _mm256_max_ps(a, b); }
inline F root(F a) { return _mm256_sqrt_ps(a); }
inline F absolute(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline F negate(F a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
inline M less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
inline M is_nan(F a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
inline F select(M m, F a, F b) { return _mm256_blendv_ps(b, a, m); }

inline I as_int(F a) { return _mm256_castps_si256(a); }
inline F as_float(I a) { return _mm256_castsi256_ps(a); }
inline I add(I a, I b) { return _mm256_add_epi32(a, b); }
inline I sub(I a, I b) { return _mm256_sub_epi32(a, b); }
inline I minimum(I a, I b) { return _mm256_min_epi32(a, b); }
inline I maximum(I a, I b) { return _mm256_max_epi32(a, b); }
inline I shift_left(I a, int n) { return _mm256_slli_epi32(a, n); }
inline I shift_right(I a, int n) { return _mm256_srai_epi32(a, n); }
inline I both(I a, I b) { return _mm256_and_si256(a, b); }
inline I either(I a, I b) { return _mm256_or_si256(a, b); }

}  // namespace FXQ_NS
}  // namespace fxq
#endif
