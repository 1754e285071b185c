// Vectors of bytes: BYTES of them in B, for copies, tables and maxima.
#ifndef FXQ_BYTES_H
#define FXQ_BYTES_H

#include <string.h>

#include "vec.h"

namespace fxq {
namespace FXQ_NS {

#if defined(FXQ_AVX512VNNI)

constexpr int64_t BYTES = 64;
using B = __m512i;
inline __mmask64 first_bytes(int64_t n) { return n >= 64 ? ~__mmask64(0) : (__mmask64(1) << n) - 1; }
inline B set_bytes(int v) { return _mm512_set1_epi8(static_cast<char>(v)); }
inline B load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store_bytes(uint8_t* p, B v) { _mm512_storeu_si512(p, v); }
inline B load_bytes(const uint8_t* p, int64_t n) { return _mm512_maskz_loadu_epi8(first_bytes(n), p); }
inline void store_bytes(uint8_t* p, B v, int64_t n) { _mm512_mask_storeu_epi8(p, first_bytes(n), v); }
inline B larger(B a, B b) { return _mm512_max_epu8(a, b); }
inline B smaller(B a, B b) { return _mm512_min_epu8(a, b); }

#elif defined(FXQ_AVX2) || defined(FXQ_AVXVNNI)

constexpr int64_t BYTES = 32;
using B = __m256i;
inline B set_bytes(int v) { return _mm256_set1_epi8(static_cast<char>(v)); }
inline B load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_bytes(uint8_t* p, B v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline B load_bytes(const uint8_t* p, int64_t n) {
    alignas(32) uint8_t all[32] = {};
    memcpy(all, p, static_cast<size_t>(n < 32 ? n : 32));
    return load_bytes(all);
}
inline void store_bytes(uint8_t* p, B v, int64_t n) {
    alignas(32) uint8_t all[32];
    store_bytes(all, v);
    memcpy(p, all, static_cast<size_t>(n < 32 ? n : 32));
}
inline B larger(B a, B b) { return _mm256_max_epu8(a, b); }
inline B smaller(B a, B b) { return _mm256_min_epu8(a, b); }

#else

constexpr int64_t BYTES = 1;
using B = uint8_t;
inline B set_bytes(int v) { return static_cast<uint8_t>(v); }
inline B load_bytes(const uint8_t* p) { return *p; }
inline void store_bytes(uint8_t* p, B v) { *p = v; }
inline B load_bytes(const uint8_t* p, int64_t) { return *p; }
inline void store_bytes(uint8_t* p, B v, int64_t) { *p = v; }
inline B larger(B a, B b) { return a > b ? a : b; }
inline B smaller(B a, B b) { return a < b ? a : b; }

#endif

// memcpy that is quick for the short runs of pixels.
inline void copy_bytes(uint8_t* to, const uint8_t* from, int64_t count) {
    if (BYTES == 1 || count >= 4096) {
        memcpy(to, from, static_cast<size_t>(count));
        return;
    }
    int64_t i = 0;
    for (; i + BYTES <= count; i += BYTES) store_bytes(to + i, load_bytes(from + i));
    if (i < count) store_bytes(to + i, load_bytes(from + i, count - i), count - i);
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
