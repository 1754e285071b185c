// The transforms of Winograd's F(4x4, 3x3) in exact integers (Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks", 2016): 4 x 4 outputs of a 3 x 3 convolution from 6 x 6 inputs with 36 products instead of 144.
//
// With the points 0, 1, -1, 2, -2 and infinity, 4 outputs y of a row of 6 inputs d and 3 weights g are
//     24 y = A ((G g) * (B d)),   '*' element by element,
//     B: 4 0 -5 0 1 0 | 0 -4 -4 1 1 0 | 0 4 -4 -1 1 0 | 0 -2 -1 2 1 0 | 0 2 -1 -2 1 0 | 0 4 0 -5 0 1
//     G: 6 0 0 | -4 -4 -4 | -4 4 -4 | 1 2 4 | 1 -2 4 | 0 0 12
//     A: 1 1 1 1 1 0 | 0 1 -1 2 -2 0 | 0 1 1 4 4 0 | 0 1 -1 8 -8 2
// all whole numbers. In two dimensions a transformed input of u8 is at most 50 * 255 and a transformed weight of s8 at most
// 144 * 127 in size: both fit 16 bits. Sums of their products wrap around modulo 2^32, and so do the 576 y made of them;
// the product of 576 y with the inverse of 9 is 64 y, which is exact where |y| < 2^25, whatever has wrapped on the way.
#ifndef FXQ_WINOGRAD_H
#define FXQ_WINOGRAD_H

#include <immintrin.h>

#include "words.h"

namespace fxq {
namespace FXQ_NS {

constexpr int64_t TILE = 4;         // outputs of a tile, on each side
constexpr int64_t PATCH = 6;        // inputs
constexpr int64_t POSITIONS = 36;   // transformed values of a patch
constexpr int32_t INVERSE_OF_9 = 0x38E38E39;  // modulo 2^32
constexpr int64_t EXACT = 1 << 25;  // sums below are exact

// Six values of a row or a column of a patch.
struct Six {
    I a, b, c, d, e, f;
};

// B d, of 16-bit lanes.
FXQ_INLINE Six transform_inputs(const Six& d) {
    const I even = sub16(d.e, times4(d.c)), odd = sub16(d.d, times4(d.b));
    const I far = sub16(d.e, d.c), step = sub16(d.d, d.b), twice = add16(step, step);
    return {add16(times4(sub16(d.a, d.c)), far), add16(even, odd),  sub16(even, odd),
            add16(far, twice),                   sub16(far, twice), sub16(sub16(d.f, d.d), add16(twice, twice))};
}

// G g.
inline void transform_weights(const int32_t (&g)[3], int32_t (&to)[PATCH]) {
    to[0] = 6 * g[0];
    to[1] = -4 * (g[0] + g[1] + g[2]);
    to[2] = -4 * (g[0] - g[1] + g[2]);
    to[3] = g[0] + 2 * g[1] + 4 * g[2];
    to[4] = g[0] - 2 * g[1] + 4 * g[2];
    to[5] = 12 * g[2];
}

struct Four {
    I a, b, c, d;
};

// A m, of 32-bit lanes.
FXQ_INLINE Four transform_sums(const Six& m) {
    const I near = add(m.b, m.c), left = sub(m.b, m.c), wide = add(m.d, m.e), right = sub(m.d, m.e);
    const I wide4 = shift_left(wide, 2), right2 = add(right, right);
    return {add(add(m.a, near), wide), add(left, right2), add(near, wide4),
            add(add(left, shift_left(right2, 2)), add(m.f, m.f))};
}

// y from 576 y.
FXQ_INLINE I unscaled(I sum) { return shift_right(multiply(sum, set_int(INVERSE_OF_9)), 6); }

}  // namespace FXQ_NS
}  // namespace fxq
#endif
