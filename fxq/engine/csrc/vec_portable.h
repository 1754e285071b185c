// The definition of the vector functions: one lane, plain C++.
#ifndef FXQ_VEC_PORTABLE_H
#define FXQ_VEC_PORTABLE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace fxq {
namespace FXQ_NS {

constexpr int64_t LANES = 1;
using F = float;
using I = int32_t;
using M = bool;

inline F set(float v) { return v; }
inline I set_int(int32_t v) { return v; }
inline F load(const float* p) { return *p; }
inline F load_partial(const float* p, int64_t n) { return n > 0 ? *p : 0.0f; }
inline void store(float* p, F v) { *p = v; }
inline void store_partial(float* p, F v, int64_t n) {
    if (n > 0) *p = v;
}
inline I load_int(const int32_t* p) { return *p; }
inline I load_int_partial(const int32_t* p, int64_t n) { return n > 0 ? *p : 0; }
inline void store_int(int32_t* p, I v) { *p = v; }
inline I bytes(const uint8_t* p) { return *p; }
inline I bytes_partial(const uint8_t* p, int64_t n) { return n > 0 ? *p : 0; }
inline void put_bytes(uint8_t* p, I v) { *p = static_cast<uint8_t>(v); }
inline void put_bytes_partial(uint8_t* p, I v, int64_t n) {
    if (n > 0) *p = static_cast<uint8_t>(v);
}
inline F to_float(I v) { return static_cast<float>(v); }
inline I to_int(F v) { return static_cast<int32_t>(lrintf(v)); }

inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F div(F a, F b) { return a / b; }
inline F fma(F a, F b, F c) { return ::fmaf(a, b, c); }
inline F minimum(F a, F b) { return a < b ? a : b; }
inline F maximum(F a, F b) { return a > b ? a : b; }
inline F root(F a) { return ::sqrtf(a); }
inline F absolute(F a) { return ::fabsf(a); }
inline F negate(F a) { return -a; }
inline M less(F a, F b) { return a < b; }
inline M is_nan(F a) { return a != a; }
inline F select(M m, F a, F b) { return m ? a : b; }

inline I as_int(F a) {
    int32_t i;
    memcpy(&i, &a, sizeof i);
    return i;
}
inline F as_float(I a) {
    float f;
    memcpy(&f, &a, sizeof f);
    return f;
}
inline I add(I a, I b) { return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }
inline I sub(I a, I b) { return static_cast<int32_t>(static_cast<uint32_t>(a) - static_cast<uint32_t>(b)); }
inline I minimum(I a, I b) { return a < b ? a : b; }
inline I maximum(I a, I b) { return a > b ? a : b; }
inline I shift_left(I a, int n) { return static_cast<int32_t>(static_cast<uint32_t>(a) << n); }
inline I shift_right(I a, int n) { return a >> n; }
inline I both(I a, I b) { return a & b; }
inline I either(I a, I b) { return a | b; }

}  // namespace FXQ_NS
}  // namespace fxq
#endif
