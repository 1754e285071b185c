// The vector type of the instruction set that this unit is compiled for: F (float32), I (s32), M (a comparison's
// result), LANES of each, in namespace fxq::FXQ_NS. One of FXQ_PORTABLE, FXQ_AVX2, FXQ_AVXVNNI, FXQ_AVX512VNNI, FXQ_AMX is defined
// by the build. Kernels written with these functions give the same bits everywhere: each function is one IEEE operation.
//
//   load store load_partial store_partial     float32, the first n lanes; lanes that are not loaded are zero
//   bytes bytes_partial                       u8 -> I, zero-extended
//   put_bytes put_bytes_partial               I (0..255) -> u8
//   load_int store_int load_int_partial       s32
//   set set_int to_float to_int               to_int rounds half to even; |v| must be below 2^31
//   add sub mul div fma minimum maximum root absolute negate   minimum(a, b) = a < b ? a : b, maximum(a, b) = a > b ? a : b
//   less select as_int as_float shift_left shift_right(arithmetic) both(bitwise and) either(bitwise or)
#ifndef FXQ_VEC_H
#define FXQ_VEC_H

// Vectors that a function takes apart are passed through memory where g++ does not inline it.
#define FXQ_INLINE __attribute__((always_inline)) inline

#if defined(FXQ_AMX)
#define FXQ_NS amx
#include "vec_avx512.h"
#elif defined(FXQ_AVX512VNNI)
#define FXQ_NS avx512vnni
#include "vec_avx512.h"
#elif defined(FXQ_AVXVNNI)
#define FXQ_NS avxvnni
#include "vec_avx2.h"
#elif defined(FXQ_AVX2)
#define FXQ_NS avx2
#include "vec_avx2.h"
#else
#define FXQ_NS portable
#include "vec_portable.h"
#endif

#endif
