// Small float32 matrix products: c[i][j] = sum over t, in order, of a(i, t) * b[t][j], each step fused, from zero.
// The order of the sum does not depend on the blocking, so every instruction set gives the same bits.
#ifndef FXQ_PRODUCT_H
#define FXQ_PRODUCT_H

#include "vec.h"

namespace fxq {
namespace FXQ_NS {

// Vectors of b that one block covers, and rows of a with them: as many sums as registers hold.
constexpr int MOST_VECTORS = LANES == 16 ? 4 : 2;
constexpr int rows_with(int vectors) {
    if (LANES == 16) return vectors == 4 ? 6 : vectors == 3 ? 8 : 12;
    return vectors == 2 ? 6 : 8;
}

// Element (i, t) of a is a[i * row + t * step]; row t of b is b + t * pitch; row i of c is c + i * pitch. In floats.
struct Left {
    const float* data;
    int64_t row, step;
};

struct Rows {
    float* data;
    int64_t pitch;
};

struct ConstRows {
    const float* data;
    int64_t pitch;
};

template <int rows, int vectors>
inline void product_block(const Left& a, const ConstRows& b, const Rows& c, int64_t steps) {
    F sum[rows][vectors];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int k = 0; k < vectors; ++k) sum[i][k] = set(0.0f);
    const float *left = a.data, *right = b.data;
    for (int64_t t = 0; t < steps; ++t, left += a.step, right += b.pitch) {
        F v[vectors];
#pragma GCC unroll 4
        for (int k = 0; k < vectors; ++k) v[k] = load(right + k * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) {
            const F x = set(left[i * a.row]);
#pragma GCC unroll 4
            for (int k = 0; k < vectors; ++k) sum[i][k] = fma(x, v[k], sum[i][k]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int k = 0; k < vectors; ++k) store(c.data + i * c.pitch + k * LANES, sum[i][k]);
}

template <int rows, int vectors>
inline void product_rows(Left a, const ConstRows& b, Rows c, int64_t count, int64_t steps) {
    for (; count >= rows; count -= rows, a.data += rows * a.row, c.data += rows * c.pitch)
        product_block<rows, vectors>(a, b, c, steps);
    if constexpr (rows > 1) {
        if (count > 0) product_rows<rows / 2, vectors>(a, b, c, count, steps);
    }
}

// `rows` rows of `vectors` vectors.
inline void product(const Left& a, ConstRows b, Rows c, int64_t rows, int64_t vectors, int64_t steps) {
    while (vectors > 0) {
        const int64_t now = vectors < MOST_VECTORS ? vectors : MOST_VECTORS;
        if (now == 1) product_rows<rows_with(1), 1>(a, b, c, rows, steps);
        if (now == 2) product_rows<rows_with(2), 2>(a, b, c, rows, steps);
        if constexpr (MOST_VECTORS == 4) {
            if (now == 3) product_rows<rows_with(3), 3>(a, b, c, rows, steps);
            if (now == 4) product_rows<rows_with(4), 4>(a, b, c, rows, steps);
        }
        b.data += now * LANES;
        c.data += now * LANES;
        vectors -= now;
    }
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
