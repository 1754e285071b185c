// The vector functions on AVX-512 (F, BW, VL, DQ): 16 lanes.
#ifndef FXQ_VEC_AVX512_H
#define FXQ_VEC_AVX512_H

#include <immintrin.h>
#include <stdint.h>

namespace fxq {
namespace FXQ_NS {

constexpr int64_t LANES = 16;
using F = __m512;
using I = __m512i;
using M = __mmask16;

inline __mmask16 first(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << (n > 0 ? n : 0)) - 1); }

inline F set(float v) { return _mm512_set1_ps(v); }
inline I set_int(int32_t v) { return _mm512_set1_epi32(v); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load_partial(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline void store_partial(float* p, F v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
inline I load_int(const int32_t* p) { return _mm512_loadu_si512(p); }
inline I load_int_partial(const int32_t* p, int64_t n) { return _mm512_maskz_loadu_epi32(first(n), p); }
inline void store_int(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
inline I bytes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline I bytes_partial(const uint8_t* p, int64_t n) {
    return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p));
}
inline void put_bytes(uint8_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}
inline void put_bytes_partial(uint8_t* p, I v, int64_t n) {
    _mm_mask_storeu_epi8(p, first(n), _mm512_cvtepi32_epi8(v));
}
inline F to_float(I v) { return _mm512_cvtepi32_ps(v); }
inline I to_int(F v) { return _mm512_cvtps_epi32(v); }

inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F minimum(F a, F b) { return _mm512_min_ps(a, b); }
inline F maximum(F a, F b) { return _mm512_max_ps(a, b); }
inline F root(F a) { return _mm512_sqrt_ps(a); }
inline F absolute(F a) { return _mm512_abs_ps(a); }
inline F negate(F a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
inline M less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline M is_nan(F a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
inline F select(M m, F a, F b) { return _mm512_mask_blend_ps(m, b, a); }

inline I as_int(F a) { return _mm512_castps_si512(a); }
inline F as_float(I a) { return _mm512_castsi512_ps(a); }
inline I add(I a, I b) { return _mm512_add_epi32(a, b); }
inline I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
inline I minimum(I a, I b) { return _mm512_min_epi32(a, b); }
inline I maximum(I a, I b) { return _mm512_max_epi32(a, b); }
inline I shift_left(I a, int n) { return _mm512_slli_epi32(a, static_cast<unsigned>(n)); }
inline I shift_right(I a, int n) { return _mm512_srai_epi32(a, static_cast<unsigned>(n)); }
inline I both(I a, I b) { return _mm512_and_si512(a, b); }
inline I either(I a, I b) { return _mm512_or_si512(a, b); }

}  // namespace FXQ_NS
}  // namespace fxq
#endif
