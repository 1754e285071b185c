// From floats to codes.
#ifndef FXQ_DYNAMIC_CODES_H
#define FXQ_DYNAMIC_CODES_H

#include <cmath>
#include <cstring>

#include "vectors.h"

namespace fxq {

constexpr float SMALLEST = 7.888609052210118e-31f;  // 2**-100: below it a reciprocal leaves float32's normal range

// The range of values and of zero; `odd` is NaN where one of them is NaN or infinite, else 0.
struct Range {
    float low = 0.0f, high = 0.0f, odd = 0.0f;

    void add(const Range& other) {
        low = other.low < low ? other.low : low;
        high = other.high > high ? other.high : high;
        odd += other.odd;
    }
};

// real = (code - zero) * scale
struct Map {
    float scale = 1.0f;
    int32_t zero = 0;
};

FXQ_TARGET inline Range range_of(const float* x, int64_t n) {
    __m512 low = _mm512_setzero_ps(), high = low, odd = low;
    for (int64_t k = 0; k < n; k += LANES) {
        const __m512 v = _mm512_maskz_loadu_ps(mask_of(n - k), x + k);
        low = _mm512_min_ps(v, low);
        high = _mm512_max_ps(v, high);
        odd = _mm512_fmadd_ps(v, _mm512_setzero_ps(), odd);
    }
    Range found;
    found.low = _mm512_reduce_min_ps(low);
    found.high = _mm512_reduce_max_ps(high);
    found.odd = _mm512_reduce_add_ps(odd);
    return found;
}

// max|x| / 127 and 128; the scale is NaN where a value is not finite.
inline Map symmetric(const Range& range) {
    float largest = range.high > -range.low ? range.high : -range.low;
    largest = largest > SMALLEST ? largest : SMALLEST;
    return {largest / 127.0f + range.odd, 128};
}

// As QParams.from_range, in double precision.
inline Map affine(const Range& range) {
    const double low = range.low, high = range.high;
    if (low == high) return {};
    const double wide = high / 255 - low / 255;
    const float scale = static_cast<float>(wide > SMALLEST ? wide : SMALLEST);
    const double zero = std::nearbyint(-low / scale);
    return {scale, static_cast<int32_t>(zero > 255 ? 255 : zero)};
}

// The rows that are multiplied together: codes of a group lie side by side, 4 of each row after 4 of each row, so that
// the product reads them as one stream.
struct Group {
    int64_t first, rows;

    // That of row `r` of `count`: fours, then the rest.
    static Group of(int64_t r, int64_t count) {
        const int64_t first = r & ~int64_t(3);
        return {first, count - first < 4 ? count - first : 4};
    }
};

// Writes the codes of row `r` of `count` rows, whose codes start at `codes`.
FXQ_TARGET inline void encode(const float* x, int64_t n, const Map& map, uint8_t* codes, int64_t r, int64_t count) {
    const Group group = Group::of(r, count);
    const int64_t step = 4 * group.rows;
    uint8_t* to = codes + group.first * depth_of(n) + (r - group.first) * 4;
    const __m512 scale = _mm512_set1_ps(map.scale);
    const __m512i zero = _mm512_set1_epi32(map.zero);
    for (int64_t k = 0; k < n; k += LANES) {
        const __m512 v = _mm512_div_ps(_mm512_maskz_loadu_ps(mask_of(n - k), x + k), scale);
        const __m512i q = _mm512_max_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(v), zero), _mm512_setzero_si512());
        alignas(16) uint8_t own[LANES];
        _mm_store_si128(reinterpret_cast<__m128i*>(own), _mm512_cvtusepi32_epi8(q));
        for (int64_t i = 0; i < LANES && k + i < n; i += 4, to += step) std::memcpy(to, own + i, 4);
    }
}

}  // namespace fxq
#endif
