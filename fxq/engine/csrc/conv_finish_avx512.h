// The epilogues on AVX-512.
#ifndef FXQ_CONV_FINISH_AVX512_H
#define FXQ_CONV_FINISH_AVX512_H

#include "conv_job.h"

namespace fxq {
namespace FXQ_NS {

// Requantises two pixels' sums to 32 codes each, in the low and high half of the result. Bounded values only.
struct FastFinish {
    __m512 scale[2], bias[2], residual_scale, residual_offset;
    __m512i zero, lowest, highest, order;
    __mmask32 mask;
    int64_t first;

    explicit FastFinish(const Job& job) : first(job.block.first) {
        const int32_t* ints = job.record->ints;
        for (int v = 0; v < 2; ++v) {
            scale[v] = _mm512_loadu_ps(job.scale + 16 * v);
            bias[v] = _mm512_loadu_ps(job.bias + 16 * v);
        }
        residual_scale = _mm512_set1_ps(job.record->floats[0]);
        residual_offset = _mm512_set1_ps(job.record->floats[1]);
        zero = _mm512_set1_epi16(static_cast<int16_t>(ints[10]));
        lowest = _mm512_set1_epi8(static_cast<char>(ints[11]));
        highest = _mm512_set1_epi8(static_cast<char>(ints[12]));
        order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        mask = job.block.width >= 32 ? ~0u : (1u << job.block.width) - 1;
    }

    // Reads whole vectors: what stands behind the block's channels is not written.
    __m512 with_residual(__m512 real, int v, const uint8_t* r) const {
        const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(r + 16 * v)));
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes), residual_scale, _mm512_add_ps(real, residual_offset));
    }

    template <int finish>
    __m512i whole(__m512i sum, int v, const uint8_t* r) const {
        __m512 real = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale[v], bias[v]);
        if (finish == FINISH_RESIDUAL) real = with_residual(real, v, r);
        return _mm512_cvtps_epi32(real);
    }

    __m512i pack(__m512i a0, __m512i a1, __m512i b0, __m512i b1) const {
        const __m512i a = _mm512_adds_epi16(_mm512_packs_epi32(a0, a1), zero);
        const __m512i b = _mm512_adds_epi16(_mm512_packs_epi32(b0, b1), zero);
        const __m512i codes = _mm512_max_epu8(_mm512_min_epu8(_mm512_packus_epi16(a, b), highest), lowest);
        return _mm512_permutexvar_epi32(order, codes);
    }

    // Finishes pixels p and q (p again where there is no other) with sums of `vectors` * 16 channels.
    template <int finish>
    void pair(const Pixels& pixels, int64_t p, int64_t q, __m512i a0, __m512i a1, __m512i b0, __m512i b1,
              int vectors) const {
        const uint8_t* const ra = finish == FINISH_RESIDUAL ? pixels.r[p] + first : nullptr;
        const uint8_t* const rb = finish == FINISH_RESIDUAL ? pixels.r[q] + first : nullptr;
        a0 = whole<finish>(a0, 0, ra);
        b0 = whole<finish>(b0, 0, rb);
        if (vectors == 2) {
            a1 = whole<finish>(a1, 1, ra);
            b1 = whole<finish>(b1, 1, rb);
        }
        put(pixels, p, q, pack(a0, a1, b0, b1));
    }

    void put(const Pixels& pixels, int64_t p, int64_t q, __m512i codes) const {
        _mm256_mask_storeu_epi8(pixels.y[p] + first, mask, _mm512_castsi512_si256(codes));
        if (q != p) _mm256_mask_storeu_epi8(pixels.y[q] + first, mask, _mm512_extracti64x4_epi64(codes, 1));
    }
};

// FastFinish with a function behind; of bounded results without a residual.
template <int function>
struct FunctionFinish : FastFinish {
    const ScaledActivation<function> activation;

    explicit FunctionFinish(const Job& job) : FastFinish(job), activation(job.record->floats + 3, job.record->floats[2]) {}

    __m512i scaled(__m512i sum, int v) const {
        return _mm512_cvtps_epi32(activation(_mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale[v], bias[v])));
    }

    template <int>
    void pair(const Pixels& pixels, int64_t p, int64_t q, __m512i a0, __m512i a1, __m512i b0, __m512i b1,
              int vectors) const {
        a0 = scaled(a0, 0), b0 = scaled(b0, 0);
        if (vectors == 2) a1 = scaled(a1, 1), b1 = scaled(b1, 1);
        put(pixels, p, q, pack(a0, a1, b0, b1));
    }
};

// Real results without a function. FINISH_RESIDUAL: the residual is float32, too.
struct RealFinish {
    __m512 scale[2], bias[2];
    __mmask16 lanes[2];
    int64_t first;

    explicit RealFinish(const Job& job) : first(job.block.first) {
        for (int v = 0; v < 2; ++v) {
            scale[v] = load(job.scale + 16 * v);
            bias[v] = load(job.bias + 16 * v);
            lanes[v] = fxq::FXQ_NS::first(job.block.width - 16 * v);
        }
    }

    template <int finish>
    void put(const Pixels& pixels, int64_t p, int v, __m512i sum) const {
        const int64_t channel = first + 16 * v;
        __m512 real = fma(to_float(sum), scale[v], bias[v]);
        if (finish == FINISH_RESIDUAL)
            real = add(real, _mm512_maskz_loadu_ps(lanes[v], reinterpret_cast<const float*>(pixels.r[p]) + channel));
        _mm512_mask_storeu_ps(reinterpret_cast<float*>(pixels.y[p]) + channel, lanes[v], real);
    }

    template <int finish>
    void pair(const Pixels& pixels, int64_t p, int64_t q, __m512i a0, __m512i a1, __m512i b0, __m512i b1,
              int vectors) const {
        put<finish>(pixels, p, 0, a0);
        if (vectors == 2) put<finish>(pixels, p, 1, a1);
        if (q == p) return;
        put<finish>(pixels, q, 0, b0);
        if (vectors == 2) put<finish>(pixels, q, 1, b1);
    }
};

// Sums in memory, [pixel][32]: any function, a u8 residual or none. `clamps`: values may leave the range of s32.
template <int function, bool clamps>
inline void finish_codes(const Job& job, const Pixels& pixels, int64_t first, int64_t count, const int32_t* sums) {
    const FastFinish fast(job);
    const fxq_operation& record = *job.record;
    const Codes codes = codes_of(record);
    const ScaledActivation<function> activation(record.floats + 3, record.floats[2]);
    const bool residual = record.ints[13] == 1;
    const auto whole = [&](const int32_t* sum, int v, const uint8_t* r) {
        F real = fma(to_float(load_int(sum + 16 * v)), fast.scale[v], fast.bias[v]);
        if (residual) real = fast.with_residual(real, v, r);
        real = activation(real);
        if (clamps) real = maximum(minimum(real, codes.high), codes.low);
        return to_int(real);
    };
    for (int64_t p = 0; p < count; p += 2, sums += 2 * BLOCK) {
        const int64_t q = p + 1 < count ? p + 1 : p;
        const int32_t* const other = sums + (q - p) * BLOCK;
        const uint8_t* const rp = residual ? pixels.r[first + p] + fast.first : nullptr;
        const uint8_t* const rq = residual ? pixels.r[first + q] + fast.first : nullptr;
        const I p0 = whole(sums, 0, rp), q0 = whole(other, 0, rq);
        I p1 = _mm512_setzero_si512(), q1 = p1;
        if (job.block.width > 16) p1 = whole(sums, 1, rp), q1 = whole(other, 1, rq);
        fast.put(pixels, first + p, first + q, fast.pack(p0, p1, q0, q1));
    }
}

// Pixels whose sums stand in memory, [pixel][32], of any layer.
inline void finish_memory(const Job& job, const Pixels& pixels, int64_t first, int64_t count, const int32_t* sums) {
    if (job.type != FXQ_U8 || job.record->ints[13] == 2) return finish_any(job, pixels, first, count, sums);
    with_function(job.record->ints[9], [&](auto tag) {
        if (job.bounded) return finish_codes<decltype(tag)::value, false>(job, pixels, first, count, sums);
        finish_codes<decltype(tag)::value, true>(job, pixels, first, count, sums);
    });
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
