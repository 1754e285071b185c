// Winograd's transforms in exact integers (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016):
// 4 x 4 outputs of a 3 x 3 convolution from 6 x 6 inputs with 36 products instead of 144.
//
// With the points 0, 1, -1, 2, -2 and infinity, 4 outputs y of a line of 6 inputs d and 3 weights g are
//     24 y = A ((G g) * (B d)),   '*' element by element,
//     B: 4 0 -5 0 1 0 | 0 4 4 -1 -1 0 | 0 -4 4 1 -1 0 | 0 -2 -1 2 1 0 | 0 2 -1 -2 1 0 | 0 4 0 -5 0 1
//     G: 6 0 0 | 4 4 4 | 4 -4 4 | 1 2 4 | 1 -2 4 | 0 0 12
//     A: 1 1 1 1 1 0 | 0 1 -1 2 -2 0 | 0 1 1 4 4 0 | 0 1 -1 8 -8 2
// all whole numbers. The points 2 and -2 can be left out (positions 3 and 4): with the same weights, 2 outputs of 4 inputs
// are 24 y = A ((G g) * (B d)) with
//     B: 4 0 -4 0 | 0 3 3 0 | 0 -3 3 0 | 0 -2 0 2        A: 1 1 1 0 | 0 1 -1 1
// for the last outputs of a line whose length is no multiple of 4.
//
// In two dimensions a transformed input of u8 is at most 50 * 255 and a transformed weight of s8 at most
// 144 * 127 in size: both fit 16 bits. Sums of their products wrap around modulo 2^32, and so do the 576 y made of them;
// the product of 576 y with the inverse of 9 is 64 y, which is exact where |y| < 2^25, whatever has wrapped on the way.
#ifndef FXQ_WINOGRAD_H
#define FXQ_WINOGRAD_H

#include <immintrin.h>

#include "words.h"

namespace fxq {
namespace FXQ_NS {

constexpr int64_t TILE = 4;         // outputs of a tile, on each side; of a short one 2
constexpr int64_t PATCH = 6;        // inputs
constexpr int64_t POSITIONS = 36;   // transformed values of a patch
constexpr int32_t INVERSE_OF_9 = 0x38E38E39;  // modulo 2^32
constexpr int64_t EXACT = 1 << 25;  // sums below are exact

// Whether a line that is short has a value at this position.
constexpr bool in_short(int64_t position) { return position < 3 || position == 5; }

// Six values of a row or a column of a patch. A short one has no d and e, and four inputs: a to d.
struct Six {
    I a, b, c, d, e, f;
};

FXQ_INLINE I times2(I a) { return add16(a, a); }
FXQ_INLINE I times3(I a) { return add16(times2(a), a); }

// B d, of 16-bit lanes.
template <bool is_short>
FXQ_INLINE Six transform_inputs(const Six& d) {
    if (is_short)
        return {times4(sub16(d.a, d.c)), times3(add16(d.c, d.b)), times3(sub16(d.c, d.b)), d.a, d.a,
                times2(sub16(d.d, d.b))};
    const I even = sub16(times4(d.c), d.e), odd = sub16(times4(d.b), d.d);
    const I far = sub16(d.e, d.c), step = sub16(d.d, d.b), twice = times2(step);
    return {add16(times4(sub16(d.a, d.c)), far), add16(even, odd),  sub16(even, odd),
            add16(far, twice),                   sub16(far, twice), sub16(sub16(d.f, d.d), times2(twice))};
}

// One of the values G g of 16-bit lanes.
template <int position>
FXQ_INLINE I transform_weight(I a, I b, I c) {
    if (position == 0) return times2(times3(a));
    if (position == 1) return times4(add16(add16(a, c), b));
    if (position == 2) return times4(sub16(add16(a, c), b));
    if (position == 3) return add16(add16(a, times4(c)), times2(b));
    if (position == 4) return sub16(add16(a, times4(c)), times2(b));
    return times4(times3(c));
}

struct Four {
    I a, b, c, d;
};

// A m, of 32-bit lanes. A short line has two values.
template <bool is_short>
FXQ_INLINE Four transform_sums(const Six& m) {
    const I near = add(m.b, m.c), left = sub(m.b, m.c);
    if (is_short) return {add(m.a, near), add(left, m.f), m.a, m.a};
    const I wide = add(m.d, m.e), right = sub(m.d, m.e), wide4 = shift_left(wide, 2), right2 = add(right, right);
    return {add(add(m.a, near), wide), add(left, right2), add(near, wide4),
            add(add(left, shift_left(right2, 2)), add(m.f, m.f))};
}

// y from 576 y.
FXQ_INLINE I unscaled(I sum) { return shift_right(multiply(sum, set_int(INVERSE_OF_9)), 6); }

}  // namespace FXQ_NS
}  // namespace fxq
#endif
