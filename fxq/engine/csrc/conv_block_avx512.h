// A block of up to 14 pixels by 32 output channels on AVX512-VNNI: 28 accumulators, two vectors of weights, and four
// bytes of a pixel at a time, broadcast.
#ifndef FXQ_CONV_BLOCK_AVX512_H
#define FXQ_CONV_BLOCK_AVX512_H

#include <string.h>

#include "conv_finish_avx512.h"
#include "dot.h"

namespace fxq {
namespace FXQ_NS {

constexpr int64_t PIXELS = 14;
constexpr int64_t STRIP = 4 * PIXELS;  // pixels whose sums stand in memory before they are finished
constexpr int64_t SMALL = 8;           // pixels of a small block
constexpr int64_t SMALLER = 4;         // of one whose sums take few steps
constexpr int64_t FEW_STEPS = 64;      // of four bytes: so many at most
constexpr int64_t BYTES_COST = 1;      // of a step of four bytes, where one of two words is 1

inline int64_t groups_of_pixels(int64_t pixels) { return (pixels + PIXELS - 1) / PIXELS; }

// Applies a macro to the number of each pixel.
#define FXQ_PIXELS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13)

inline __m512i four_bytes(const uint8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}

// Adds products of four u8 with four s8.
struct Bytes {
    static void dot(__m512i* sum, __m512i inputs, __m512i weights) { add_dot(sum, inputs, weights); }
};

// Adds products of two s16 with two s16. Assembly as in dot.h.
struct Words {
    static void dot(__m512i* sum, __m512i inputs, __m512i weights) {
        __asm__("vpdpwssd %2, %1, %0" : "+v"(*sum) : "v"(inputs), "v"(weights));
    }
};

// P pixels from `first` on: to codes, or (FINISH_ANY) their sums to memory.
template <int P, int NV, int finish, class Fast, class Kind = Bytes>
__attribute__((always_inline)) inline void block(const Job& job, const Pixels& pixels, int64_t first,
                                                 const Fast& fast, int32_t* sums) {
    // Variables, because an array of accumulators is written back to memory in every step by g++.
    const __m512i start0 = _mm512_load_si512(job.start), start1 = _mm512_load_si512(job.start + 16);
#define FXQ_DECLARE(i) __m512i a##i = start0, b##i = start1;
    FXQ_PIXELS(FXQ_DECLARE)
#undef FXQ_DECLARE
    const int8_t* w = job.panel;
    const uint8_t* const* const x = pixels.x + first;
    for (int64_t s = 0; s < job.segment_count; ++s) {
        const int64_t offset = job.segments[s].offset + job.block.input;
#define FXQ_POINT(i) const uint8_t* const x##i = P > i ? x[P > i ? i : 0] + offset : nullptr;
        FXQ_PIXELS(FXQ_POINT)
#undef FXQ_POINT
        const int64_t bytes = job.segments[s].steps * 4;
        for (int64_t k = 0; k < bytes; k += 4, w += 128) {
            const __m512i w0 = _mm512_load_si512(w), w1 = NV == 2 ? _mm512_load_si512(w + 64) : w0;
#define FXQ_STEP(i)                                                \
    if (P > i) {                                                   \
        const __m512i inputs = four_bytes(x##i + k);               \
        Kind::dot(&a##i, inputs, w0);                              \
        if (NV == 2) Kind::dot(&b##i, inputs, w1);                 \
    }
            FXQ_PIXELS(FXQ_STEP)
#undef FXQ_STEP
        }
    }
    __m512i sum[PIXELS][2];
#define FXQ_COLLECT(i) sum[i][0] = a##i, sum[i][1] = b##i;
    FXQ_PIXELS(FXQ_COLLECT)
#undef FXQ_COLLECT

    if (finish == FINISH_ANY) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
            for (int v = 0; v < NV; ++v) _mm512_store_si512(sums + p * BLOCK + 16 * v, sum[p][v]);
        return;
    }
    const __m512i none = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int p = 0; p < P; p += 2) {
        const int q = p + 1 < P ? p + 1 : p;
        fast.template pair<finish>(pixels, first + p, first + q, sum[p][0], NV == 2 ? sum[p][1] : none, sum[q][0],
                                   NV == 2 ? sum[q][1] : none, NV);
    }
}

template <int P, int NV, int finish>
void one_block(const Job& job, const Pixels& pixels, int64_t first, int32_t* sums) {
    block<P, NV, finish>(job, pixels, first, FastFinish(job), sums);
}

template <int P>
void block_of(const Job& job, const Pixels& pixels, int64_t first, int32_t* sums) {
    using Run = void (*)(const Job&, const Pixels&, int64_t, int32_t*);
    static const Run RUNS[2][3] = {
        {one_block<P, 1, FINISH_PLAIN>, one_block<P, 1, FINISH_RESIDUAL>, one_block<P, 1, FINISH_ANY>},
        {one_block<P, 2, FINISH_PLAIN>, one_block<P, 2, FINISH_RESIDUAL>, one_block<P, 2, FINISH_ANY>}};
    RUNS[job.block.width > 16][job.finish](job, pixels, first, sums);
}

// Blocks of up to 14 pixels, about equal. `sums` receives those of layers with FINISH_ANY.
inline void large_blocks(const Job& job, const Pixels& pixels, int64_t begin, int64_t end, int32_t* sums) {
    using Run = void (*)(const Job&, const Pixels&, int64_t, int32_t*);
    static const Run RUNS[PIXELS] = {block_of<1>,  block_of<2>,  block_of<3>,  block_of<4>, block_of<5>,
                                     block_of<6>,  block_of<7>,  block_of<8>,  block_of<9>, block_of<10>,
                                     block_of<11>, block_of<12>, block_of<13>, block_of<14>};
    const int64_t count = end - begin, pieces = groups_of_pixels(count);
    for (int64_t i = 0; i < pieces; ++i) {
        int64_t from, to;
        piece(count, pieces, i, &from, &to);
        RUNS[to - from - 1](job, pixels, begin + from, sums + from * BLOCK);
    }
}

// Blocks of P pixels. Returns the first pixel that is left, so that the last ones make up a block of at least as many.
template <int P, int NV, int finish, class Fast>
int64_t blocks_of(const Job& job, const Pixels& pixels, int64_t count) {
    const Fast fast(job);
    int64_t first = 0;
    for (; count - first == P || first + 2 * P <= count; first += P)
        block<P, NV, finish>(job, pixels, first, fast, nullptr);
    return first;
}

// Blocks of a few pixels: small enough for the processor to begin the next one while it finishes the last.
template <int NV, int finish, class Fast>
int64_t small_blocks(const Job& job, const Pixels& pixels, int64_t count) {
    if (job.steps <= FEW_STEPS) return blocks_of<SMALLER, NV, finish, Fast>(job, pixels, count);
    return blocks_of<SMALL, NV, finish, Fast>(job, pixels, count);
}

// The same for blocks of either width.
template <int finish, class Fast>
int64_t small_blocks(const Job& job, const Pixels& pixels, int64_t count) {
    return job.block.width > 16 ? small_blocks<2, finish, Fast>(job, pixels, count)
                                : small_blocks<1, finish, Fast>(job, pixels, count);
}

inline int64_t small_blocks(const Job& job, const Pixels& pixels, int64_t count) {
    const int32_t* ints = job.record->ints;
    if (job.finish == FINISH_PLAIN) return small_blocks<FINISH_PLAIN, FastFinish>(job, pixels, count);
    if (job.finish == FINISH_RESIDUAL) return small_blocks<FINISH_RESIDUAL, FastFinish>(job, pixels, count);
    if (job.type == FXQ_F32 && ints[9] == FXQ_IDENTITY && ints[13] == 0)
        return small_blocks<FINISH_PLAIN, RealFinish>(job, pixels, count);
    if (job.type == FXQ_F32 && ints[9] == FXQ_IDENTITY && ints[13] == 2)
        return small_blocks<FINISH_RESIDUAL, RealFinish>(job, pixels, count);
    int64_t done = 0;
    if (job.type != FXQ_U8 || ints[9] == FXQ_IDENTITY || ints[13] || !job.bounded) return done;
    with_function(ints[9], [&](auto tag) {
        done = small_blocks<FINISH_PLAIN, FunctionFinish<decltype(tag)::value>>(job, pixels, count);
    });
    return done;
}

// The sums of up to PIXELS pixels of words.
template <int P>
void words_of(const Job& job, const Pixels& pixels, int64_t first, int32_t* sums) {
    const FastFinish unused(job);
    if (job.block.width > 16) return block<P, 2, FINISH_ANY, FastFinish, Words>(job, pixels, first, unused, sums);
    block<P, 1, FINISH_ANY, FastFinish, Words>(job, pixels, first, unused, sums);
}

inline void sum_words(const Job& job, const Pixels& pixels, int64_t first, int64_t count, int32_t* sums) {
    using Run = void (*)(const Job&, const Pixels&, int64_t, int32_t*);
    static const Run RUNS[PIXELS] = {words_of<1>,  words_of<2>,  words_of<3>,  words_of<4>, words_of<5>,
                                     words_of<6>,  words_of<7>,  words_of<8>,  words_of<9>, words_of<10>,
                                     words_of<11>, words_of<12>, words_of<13>, words_of<14>};
    RUNS[count - 1](job, pixels, first, sums);
}

// All of `count` pixels.
inline void run_pixels(const Job& job, const Pixels& pixels, int64_t count) {
    alignas(64) int32_t sums[STRIP * BLOCK];
    int64_t first = small_blocks(job, pixels, count);
    while (first < count) {
        const int64_t last = job.finish == FINISH_ANY && first + STRIP < count ? first + STRIP : count;
        large_blocks(job, pixels, first, last, sums);
        if (job.finish == FINISH_ANY) finish_memory(job, pixels, first, last - first, sums);
        first = last;
    }
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
