// exp, sigmoid and tanh of sixteen floats.
#ifndef FXQ_DYNAMIC_FUNCTIONS_H
#define FXQ_DYNAMIC_FUNCTIONS_H

#include "vectors.h"

namespace fxq {

// exp as in Cephes: 2^n times a polynomial of degree 6; NaN stays NaN.
FXQ_INLINE __m512 exp_of(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-87.3f), _mm512_min_ps(_mm512_set1_ps(88.0f), x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

FXQ_INLINE __m512 sigmoid_of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp_of(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// (1 - e) / (1 + e) with e = exp(-2|x|); near 0, where 1 - e cancels, the series.
FXQ_INLINE __m512 tanh_of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), a = _mm512_abs_ps(x), s = _mm512_mul_ps(x, x);
    const __m512 e = exp_of(_mm512_mul_ps(a, _mm512_set1_ps(-2.0f)));
    const __m512 far = _mm512_div_ps(_mm512_sub_ps(one, e), _mm512_add_ps(one, e));
    const __m512 sign = _mm512_and_ps(x, _mm512_set1_ps(-0.0f));
    __m512 p = _mm512_set1_ps(62.0f / 2835.0f);
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-17.0f / 315.0f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(2.0f / 15.0f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-1.0f / 3.0f));
    const __m512 near = _mm512_fmadd_ps(_mm512_mul_ps(p, s), x, x);
    const __mmask16 small = _mm512_cmp_ps_mask(a, _mm512_set1_ps(0.25f), _CMP_LT_OQ);
    return _mm512_mask_blend_ps(small, _mm512_or_ps(far, sign), near);
}

}  // namespace fxq
#endif
