// What the compiled layers share of AVX512.
#ifndef FXQ_DYNAMIC_VECTORS_H
#define FXQ_DYNAMIC_VECTORS_H

#include <immintrin.h>

#include "dynamic.h"

#define FXQ_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))
#define FXQ_INLINE FXQ_TARGET static inline __attribute__((always_inline))

namespace fxq {

FXQ_INLINE __mmask16 mask_of(int64_t left) {
    return left >= LANES ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << left) - 1);
}

}  // namespace fxq
#endif
