// A block of up to 5 pixels by 16 output channels on AVX2 and AVX-VNNI: up to 10 accumulators of 8 channels.
#ifndef FXQ_CONV_BLOCK_AVX2_H
#define FXQ_CONV_BLOCK_AVX2_H

#include <string.h>

#include "conv_job.h"
#include "dot.h"

namespace fxq {
namespace FXQ_NS {

constexpr int64_t PIXELS = 5;
constexpr int64_t STRIP = 8 * PIXELS;  // pixels whose sums stand in memory before they are finished

inline int64_t groups_of_pixels(int64_t pixels) { return (pixels + PIXELS - 1) / PIXELS; }

#if defined(FXQ_AVXVNNI)

constexpr int64_t BYTES_COST = 1;  // of a step of four bytes, where one of two words is 1

// sum + the products of 4 inputs (u8, the same in every lane) and 4 weights a lane.
template <bool small>
struct Bytes {
    static __m256i dot(__m256i sum, __m256i inputs, __m256i weights) {
        add_dot(&sum, inputs, weights);
        return sum;
    }
};

// The same of 2 inputs and weights, s16.
struct Words {
    static __m256i dot(__m256i sum, __m256i inputs, __m256i weights) {
        return _mm256_dpwssd_avx_epi32(sum, inputs, weights);
    }
};

#else

constexpr int64_t BYTES_COST = 3;

// `small`: pairs of products stay in 16 bits, which vpmaddubsw saturates them to.
template <bool small>
struct Bytes {
    static __m256i dot(__m256i sum, __m256i inputs, __m256i weights) {
        const __m256i ones = _mm256_set1_epi16(1);
        if (small) return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(inputs, weights), ones));
        add_dot(&sum, inputs, weights);
        return sum;
    }
};

struct Words {
    static __m256i dot(__m256i sum, __m256i inputs, __m256i weights) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(inputs, weights));
    }
};

#endif

// Sums of P pixels and the 16 channels from `half` * 16 on.
template <int P, class Kind>
void block_half(const Job& job, const Pixels& pixels, int64_t first, int64_t half, int32_t* sums) {
    __m256i sum[P][2];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
        for (int v = 0; v < 2; ++v)
            sum[p][v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(job.start + 16 * half + 8 * v));
    const int8_t* w = job.panel + 64 * half;
    for (int64_t s = 0; s < job.segment_count; ++s) {
        const int64_t offset = job.segments[s].offset + job.block.input;
        const int64_t bytes = job.segments[s].steps * 4;
        for (int64_t k = 0; k < bytes; k += 4, w += 128) {
            const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
            const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32));
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) {
                int32_t four;
                memcpy(&four, pixels.x[first + p] + offset + k, 4);
                const __m256i inputs = _mm256_set1_epi32(four);
                sum[p][0] = Kind::dot(sum[p][0], inputs, w0);
                sum[p][1] = Kind::dot(sum[p][1], inputs, w1);
            }
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
        for (int v = 0; v < 2; ++v)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + p * BLOCK + 16 * half + 8 * v), sum[p][v]);
}

template <int P>
void block_of(const Job& job, const Pixels& pixels, int64_t first, int32_t* sums) {
    for (int64_t half = 0; half * 16 < job.block.width; ++half) {
        if (job.small)
            block_half<P, Bytes<true>>(job, pixels, first, half, sums);
        else
            block_half<P, Bytes<false>>(job, pixels, first, half, sums);
    }
}

// The sums of up to PIXELS pixels of words.
template <int P>
void words_of(const Job& job, const Pixels& pixels, int64_t first, int32_t* sums) {
    for (int64_t half = 0; half * 16 < job.block.width; ++half) block_half<P, Words>(job, pixels, first, half, sums);
}

inline void sum_words(const Job& job, const Pixels& pixels, int64_t first, int64_t count, int32_t* sums) {
    using Run = void (*)(const Job&, const Pixels&, int64_t, int32_t*);
    static const Run RUNS[PIXELS] = {words_of<1>, words_of<2>, words_of<3>, words_of<4>, words_of<5>};
    RUNS[count - 1](job, pixels, first, sums);
}

// Pixels whose sums stand in memory, [pixel][32], of any layer.
inline void finish_memory(const Job& job, const Pixels& pixels, int64_t first, int64_t count, const int32_t* sums) {
    finish_any(job, pixels, first, count, sums);
}

// All of `count` pixels.
inline void run_pixels(const Job& job, const Pixels& pixels, int64_t count) {
    using Run = void (*)(const Job&, const Pixels&, int64_t, int32_t*);
    static const Run RUNS[PIXELS] = {block_of<1>, block_of<2>, block_of<3>, block_of<4>, block_of<5>};
    alignas(64) int32_t sums[STRIP * BLOCK];
    for (int64_t first = 0; first < count; first += STRIP) {
        const int64_t strip = first + STRIP < count ? STRIP : count - first, pieces = groups_of_pixels(strip);
        for (int64_t i = 0; i < pieces; ++i) {
            int64_t from, to;
            piece(strip, pieces, i, &from, &to);
            RUNS[to - from - 1](job, pixels, first + from, sums + from * BLOCK);
        }
        finish_memory(job, pixels, first, strip, sums);
    }
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
