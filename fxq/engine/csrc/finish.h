// From sources of real values to results: activation, then codes or float32. Shared by all pointwise operations.
//
// A source gives the real value of elements i .. i + LANES - 1 (full) or of the first n of them (part).
#ifndef FXQ_FINISH_H
#define FXQ_FINISH_H

#include "functions.h"
#include "result.h"

namespace fxq {
namespace FXQ_NS {

// (float(q) - zero) * scale of u8 codes.
struct CodeSource {
    const uint8_t* data;
    F zero, scale;
    F full(int64_t i) const { return mul(sub(to_float(bytes(data + i)), zero), scale); }
    F part(int64_t i, int64_t n) const { return mul(sub(to_float(bytes_partial(data + i, n)), zero), scale); }
};

struct RealSource {
    const float* data;
    F full(int64_t i) const { return load(data + i); }
    F part(int64_t i, int64_t n) const { return load_partial(data + i, n); }
};

// One value for all elements.
struct SameSource {
    F value;
    F full(int64_t) const { return value; }
    F part(int64_t, int64_t) const { return value; }
};

// Not a number becomes zero.
struct NumberSource {
    const float* data;
    static F number(F v) { return select(is_nan(v), set(0.0f), v); }
    F full(int64_t i) const { return number(load(data + i)); }
    F part(int64_t i, int64_t n) const { return number(load_partial(data + i, n)); }
};

template <class A, class B>
struct SumSource {
    A a;
    B b;
    F full(int64_t i) const { return add(a.full(i), b.full(i)); }
    F part(int64_t i, int64_t n) const { return add(a.part(i, n), b.part(i, n)); }
};

template <class A, class B>
struct ProductSource {
    A a;
    B b;
    F full(int64_t i) const { return mul(a.full(i), b.full(i)); }
    F part(int64_t i, int64_t n) const { return mul(a.part(i, n), b.part(i, n)); }
};

using ScaledSource = ProductSource<RealSource, SameSource>;

// Codes (0..255) of 4 LANES elements.
inline void put_four(uint8_t* p, I a, I b, I c, I d) {
#if defined(FXQ_AVX512VNNI)
    // Packing works within 128-bit lanes; the permutation puts the words of each vector back together.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i packed = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, packed));
#elif defined(FXQ_AVX2) || defined(FXQ_AVXVNNI)
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i packed = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(packed, order));
#else
    put_bytes(p, a);
    put_bytes(p + LANES, b);
    put_bytes(p + 2 * LANES, c);
    put_bytes(p + 3 * LANES, d);
#endif
}

// Codes of 4 LANES whole numbers that need not be bounded first: packing saturates.
struct Packer {
#if defined(FXQ_AVX512VNNI)
    __m512i zero, lowest, highest;
    Packer(int32_t zero_point, int32_t low, int32_t high)
        : zero(_mm512_set1_epi16(static_cast<int16_t>(zero_point))),
          lowest(_mm512_set1_epi8(static_cast<char>(low))),
          highest(_mm512_set1_epi8(static_cast<char>(high))) {}
    void operator()(uint8_t* p, I a, I b, I c, I d) const {
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(a, b), zero);
        const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(c, d), zero);
        const __m512i codes = _mm512_max_epu8(_mm512_min_epu8(_mm512_packus_epi16(low, high), highest), lowest);
        _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, codes));
    }
#elif defined(FXQ_AVX2) || defined(FXQ_AVXVNNI)
    __m256i zero, lowest, highest;
    Packer(int32_t zero_point, int32_t low, int32_t high)
        : zero(_mm256_set1_epi16(static_cast<int16_t>(zero_point))),
          lowest(_mm256_set1_epi8(static_cast<char>(low))),
          highest(_mm256_set1_epi8(static_cast<char>(high))) {}
    void operator()(uint8_t* p, I a, I b, I c, I d) const {
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        const __m256i low = _mm256_adds_epi16(_mm256_packs_epi32(a, b), zero);
        const __m256i high = _mm256_adds_epi16(_mm256_packs_epi32(c, d), zero);
        const __m256i codes = _mm256_max_epu8(_mm256_min_epu8(_mm256_packus_epi16(low, high), highest), lowest);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(codes, order));
    }
#else
    int32_t zero, lowest, highest;
    Packer(int32_t zero_point, int32_t low, int32_t high) : zero(zero_point), lowest(low), highest(high) {}
    void operator()(uint8_t* p, I a, I b, I c, I d) const {
        const I all[4] = {a, b, c, d};
        for (int i = 0; i < 4; ++i)
            p[i] = static_cast<uint8_t>(minimum(maximum(add(all[i], zero), lowest), highest));
    }
#endif
};

// Of ints 10, 11, 12, which mean nothing where the output is float32.
inline Codes codes_for(const fxq_operation& record, const Tensor& output) {
    return output.type == FXQ_U8 ? codes_of(record) : Codes(0, 0, 255);
}

// v -> f(v), or the code of f(v) * inverse.
struct Finish {
    bool to_codes;
    int32_t function;
    const float* params;
    F inverse;
    Codes codes;
    Packer pack{0, 0, 255};
    bool bounded = false;  // scaled values stay far inside of s32

    // Of ints 9 .. 12 and floats 2, 3 ..
    Finish(const fxq_operation& record, const Tensor& output, bool bounded = false)
        : to_codes(output.type == FXQ_U8),
          function(record.ints[9]),
          params(record.floats + 3),
          inverse(set(record.floats[2])),
          codes(codes_for(record, output)),
          pack(record.ints[10], record.ints[11], record.ints[12]),
          bounded(bounded && output.type == FXQ_U8) {}

    Finish(bool to_codes, float inverse, const Codes& codes)
        : to_codes(to_codes), function(FXQ_IDENTITY), params(nullptr), inverse(set(inverse)), codes(codes) {}

    // `count` elements.
    template <class Source>
    void operator()(const Source& source, uint8_t* out, int64_t count) const {
        pixels([&](int64_t) { return source; }, out, 0, 1, count);
    }

    // `width` pixels of `count` elements, `pitch` bytes apart; source(i) gives the source of pixel i.
    template <class Sources>
    void pixels(const Sources& source, uint8_t* out, int64_t pitch, int64_t width, int64_t count) const {
        if (bounded) return plain<true>(source, out, pitch, width, count);
        if (function == FXQ_IDENTITY) return plain<false>(source, out, pitch, width, count);
        alignas(64) float values[BLOCK];
        for (int64_t x = 0; x < width; ++x, out += pitch) {
            const auto real = source(x);
            for (int64_t i = 0; i < count; i += BLOCK) {
                const int64_t n = count - i < BLOCK ? count - i : BLOCK;
                const int64_t whole = n / LANES * LANES;
                for (int64_t k = 0; k < whole; k += LANES) store(values + k, real.full(i + k));
                if (whole < n) store(values + whole, real.part(i + whole, n - whole));
                apply_all(function, params, values, n);
                plain<false>([&](int64_t) { return RealSource{values}; }, out + i * (to_codes ? 1 : 4), 0, 1, n);
            }
        }
    }

   private:
    static constexpr int64_t BLOCK = 512;

    template <bool packs, class Sources>
    void plain(const Sources& source, uint8_t* out, int64_t pitch, int64_t width, int64_t count) const {
        const int64_t whole = count / LANES * LANES, fours = count / (4 * LANES) * (4 * LANES), rest = count - whole;
        // Copies, because bytes that are written might be part of *this for all that the compiler knows.
        const Codes code = codes;
        const F factor = inverse;
        const bool bytewise = packs || to_codes;
        const Packer packer = pack;
        for (int64_t x = 0; x < width; ++x, out += pitch) {
            const auto real = source(x);
            if (bytewise) {
                auto at = [&](int64_t i) { return code(mul(real.full(i), factor)); };
                auto whole_at = [&](int64_t i) { return to_int(mul(real.full(i), factor)); };
                for (int64_t i = 0; i < fours; i += 4 * LANES) {
                    if (packs)
                        packer(out + i, whole_at(i), whole_at(i + LANES), whole_at(i + 2 * LANES), whole_at(i + 3 * LANES));
                    else
                        put_four(out + i, at(i), at(i + LANES), at(i + 2 * LANES), at(i + 3 * LANES));
                }
                for (int64_t i = fours; i < whole; i += LANES) put_bytes(out + i, at(i));
                if (rest) put_bytes_partial(out + whole, code(mul(real.part(whole, rest), factor)), rest);
                continue;
            }
            float* target = reinterpret_cast<float*>(out);
            for (int64_t i = 0; i < whole; i += LANES) store(target + i, real.full(i));
            if (rest) store_partial(target + whole, real.part(whole, rest), rest);
        }
    }
};

}  // namespace FXQ_NS
}  // namespace fxq
#endif
