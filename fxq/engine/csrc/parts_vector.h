// Vectors of bytes for layers whose outputs read few channels: CHUNK channels, and dot products of four bytes a sum.
//
// Four taps are turned around by unpacking bytes, then words: part v of a chunk holds, in each of its 128-bit lanes,
// the channels 4 v .. 4 v + 3 of that lane's 16. Packing words, then bytes, restores the order.
#ifndef FXQ_PARTS_VECTOR_H
#define FXQ_PARTS_VECTOR_H

#include "bytes.h"
#include "dot.h"

namespace fxq {
namespace FXQ_NS {

constexpr int64_t CHUNK = 4 * LANES;

// The channel, counted from the chunk's first, in `lane` of part `part`.
inline int64_t channel_of(int64_t part, int64_t lane) { return lane / 4 * 16 + part * 4 + lane % 4; }

// The four parts of a chunk: taps, or sums.
struct Parts {
    I a, b, c, d;
};

// `segments` places of a row that one vector reads and writes at once, CHUNK / segments channels of each: where a chunk
// has few channels. `at` is the distance of each from the first.
template <int segments>
struct Places {
    int64_t at[segments];
};

#if defined(FXQ_AVX512VNNI)

constexpr int MOST_SEGMENTS = 4;

FXQ_INLINE I load_places(const uint8_t* p, const Places<1>&) { return _mm512_loadu_si512(p); }
FXQ_INLINE I load_places(const uint8_t* p, const Places<2>& places) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + places.at[1]));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
FXQ_INLINE I load_places(const uint8_t* p, const Places<4>& places) {
    const auto at = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + places.at[i])); };
    const __m512i low = _mm512_inserti32x4(_mm512_castsi128_si512(at(0)), at(1), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(low, at(2), 2), at(3), 3);
}
// Writes the codes of `width` channels of each segment.
template <int segments>
struct Writer {
    const Places<segments> places;
    const __mmask64 mask;
    Writer(const Places<segments>& to, int64_t width) : places(to), mask(first_bytes(width)) {}
    FXQ_INLINE void operator()(uint8_t* p, I codes) const {
        if constexpr (segments == 1) {
            _mm512_mask_storeu_epi8(p, mask, codes);
        } else if constexpr (segments == 2) {
            _mm256_mask_storeu_epi8(p, static_cast<__mmask32>(mask), _mm512_castsi512_si256(codes));
            _mm256_mask_storeu_epi8(p + places.at[1], static_cast<__mmask32>(mask), _mm512_extracti64x4_epi64(codes, 1));
        } else {
            const __mmask16 own = static_cast<__mmask16>(mask);
            _mm_mask_storeu_epi8(p, own, _mm512_castsi512_si128(codes));
            _mm_mask_storeu_epi8(p + places.at[1], own, _mm512_extracti32x4_epi32(codes, 1));
            _mm_mask_storeu_epi8(p + places.at[2], own, _mm512_extracti32x4_epi32(codes, 2));
            _mm_mask_storeu_epi8(p + places.at[3], own, _mm512_extracti32x4_epi32(codes, 3));
        }
    }
};
FXQ_INLINE I no_bytes() { return _mm512_setzero_si512(); }
FXQ_INLINE I load_weights(const int8_t* p) { return _mm512_load_si512(p); }
FXQ_INLINE Parts turn(I a, I b, I c, I d) {
    const I ab = _mm512_unpacklo_epi8(a, b), AB = _mm512_unpackhi_epi8(a, b);
    const I cd = _mm512_unpacklo_epi8(c, d), CD = _mm512_unpackhi_epi8(c, d);
    return {_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd), _mm512_unpacklo_epi16(AB, CD),
            _mm512_unpackhi_epi16(AB, CD)};
}
// One tap, and three times zero.
FXQ_INLINE Parts turn(I a) {
    const auto part = [a](int i) __attribute__((always_inline)) {
        const __m128i order = _mm_add_epi8(_mm_setr_epi8(0, -64, -64, -64, 1, -64, -64, -64, 2, -64, -64, -64, 3, -64,
                                                         -64, -64), _mm_set1_epi8(static_cast<char>(4 * i)));
        return _mm512_shuffle_epi8(a, _mm512_broadcast_i32x4(order));
    };
    return {part(0), part(1), part(2), part(3)};
}
// With the weights at `offset`. The base stays in a register: g++ else makes a pointer of its own for each offset.
template <int64_t offset>
FXQ_INLINE void add_dot_at(I* sum, I inputs, const int8_t* weights) {
    __asm__("vpdpbusd %c3(%2), %1, %0"
            : "+v"(*sum)
            : "v"(inputs), "r"(weights), "i"(offset), "m"(*reinterpret_cast<const int8_t(*)[offset + CHUNK]>(weights)));
}
FXQ_INLINE I words(int v) { return _mm512_set1_epi16(static_cast<int16_t>(v)); }
inline I low_words(I a, I b) { return _mm512_unpacklo_epi32(a, b); }
inline I high_words(I a, I b) { return _mm512_unpackhi_epi32(a, b); }
inline I low_pairs(I a, I b) { return _mm512_unpacklo_epi64(a, b); }
inline I high_pairs(I a, I b) { return _mm512_unpackhi_epi64(a, b); }
// clamp(clamp(sums + zero, 0, 255), lowest, highest) in the order of channels; sums saturate to 16 bits.
FXQ_INLINE I pack_parts(const Parts& sums, I zero, I lowest, I highest) {
    const I low = _mm512_adds_epi16(_mm512_packs_epi32(sums.a, sums.b), zero);
    const I high = _mm512_adds_epi16(_mm512_packs_epi32(sums.c, sums.d), zero);
    return _mm512_max_epu8(_mm512_min_epu8(_mm512_packus_epi16(low, high), highest), lowest);
}
// Writes a part's sums in the order of channels.
inline void put_part(int32_t* sums, int64_t part, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 4 * part), _mm512_castsi512_si128(v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 16 + 4 * part), _mm512_extracti32x4_epi32(v, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 32 + 4 * part), _mm512_extracti32x4_epi32(v, 2));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 48 + 4 * part), _mm512_extracti32x4_epi32(v, 3));
}

#else

constexpr int MOST_SEGMENTS = 2;

FXQ_INLINE I load_places(const uint8_t* p, const Places<1>&) { return load_bytes(p); }
FXQ_INLINE I load_places(const uint8_t* p, const Places<2>& places) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + places.at[1]));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}
template <int segments>
struct Writer {
    const Places<segments> places;
    const int64_t width;
    Writer(const Places<segments>& to, int64_t width) : places(to), width(width) {}
    FXQ_INLINE void operator()(uint8_t* p, I codes) const {
        if (segments == 1 && width >= CHUNK) return store_bytes(p, codes);
        alignas(32) uint8_t all[32];
        store_bytes(all, codes);
        for (int i = 0; i < segments; ++i)
            memcpy(p + (i ? places.at[i] : 0), all + i * CHUNK / segments,
                   static_cast<size_t>(width < CHUNK / segments ? width : CHUNK / segments));
    }
};
FXQ_INLINE I no_bytes() { return _mm256_setzero_si256(); }
FXQ_INLINE I load_weights(const int8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
FXQ_INLINE Parts turn(I a, I b, I c, I d) {
    const I ab = _mm256_unpacklo_epi8(a, b), AB = _mm256_unpackhi_epi8(a, b);
    const I cd = _mm256_unpacklo_epi8(c, d), CD = _mm256_unpackhi_epi8(c, d);
    return {_mm256_unpacklo_epi16(ab, cd), _mm256_unpackhi_epi16(ab, cd), _mm256_unpacklo_epi16(AB, CD),
            _mm256_unpackhi_epi16(AB, CD)};
}
FXQ_INLINE Parts turn(I a) { return turn(a, no_bytes(), no_bytes(), no_bytes()); }
template <int64_t offset>
FXQ_INLINE void add_dot_at(I* sum, I inputs, const int8_t* weights) {
    add_dot(sum, inputs, load_weights(weights + offset));
}
FXQ_INLINE I words(int v) { return _mm256_set1_epi16(static_cast<int16_t>(v)); }
inline I low_words(I a, I b) { return _mm256_unpacklo_epi32(a, b); }
inline I high_words(I a, I b) { return _mm256_unpackhi_epi32(a, b); }
inline I low_pairs(I a, I b) { return _mm256_unpacklo_epi64(a, b); }
inline I high_pairs(I a, I b) { return _mm256_unpackhi_epi64(a, b); }
FXQ_INLINE I pack_parts(const Parts& sums, I zero, I lowest, I highest) {
    const I low = _mm256_adds_epi16(_mm256_packs_epi32(sums.a, sums.b), zero);
    const I high = _mm256_adds_epi16(_mm256_packs_epi32(sums.c, sums.d), zero);
    return _mm256_max_epu8(_mm256_min_epu8(_mm256_packus_epi16(low, high), highest), lowest);
}
inline void put_part(int32_t* sums, int64_t part, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 4 * part), _mm256_castsi256_si128(v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 16 + 4 * part), _mm256_extracti128_si256(v, 1));
}

#endif

FXQ_INLINE Parts load_weight_parts(const int8_t* p) {
    return {load_weights(p), load_weights(p + CHUNK), load_weights(p + 2 * CHUNK), load_weights(p + 3 * CHUNK)};
}

// sums += taps * weights, four taps a channel.
FXQ_INLINE void dot_parts(Parts* sums, const Parts& taps, const Parts& weights) {
    add_dot(&sums->a, taps.a, weights.a);
    add_dot(&sums->b, taps.b, weights.b);
    add_dot(&sums->c, taps.c, weights.c);
    add_dot(&sums->d, taps.d, weights.d);
}

// The same with the weights at `offset`.
template <int64_t offset>
FXQ_INLINE void dot_parts_at(Parts* sums, const Parts& taps, const int8_t* weights) {
    add_dot_at<offset>(&sums->a, taps.a, weights);
    add_dot_at<offset + CHUNK>(&sums->b, taps.b, weights);
    add_dot_at<offset + 2 * CHUNK>(&sums->c, taps.c, weights);
    add_dot_at<offset + 3 * CHUNK>(&sums->d, taps.d, weights);
}

FXQ_INLINE Parts add(const Parts& x, const Parts& y) { return {add(x.a, y.a), add(x.b, y.b), add(x.c, y.c), add(x.d, y.d)}; }

FXQ_INLINE Parts load_parts(const int32_t* p) {
    return {load_int(p), load_int(p + LANES), load_int(p + 2 * LANES), load_int(p + 3 * LANES)};
}

FXQ_INLINE void store_parts(int32_t* p, const Parts& v) {
    store_int(p, v.a);
    store_int(p + LANES, v.b);
    store_int(p + 2 * LANES, v.c);
    store_int(p + 3 * LANES, v.d);
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
