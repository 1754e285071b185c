// Small matrix products of codes: c[i][j] = start(i, j) + sum over t of four products of bytes, u8 of a(i, t) with s8 of
// b[t][j]. Exact, so the blocking does not show.
#ifndef FXQ_DOT_PRODUCT_H
#define FXQ_DOT_PRODUCT_H

#include "dot.h"

namespace fxq {
namespace FXQ_NS {

// Vectors of b that one block covers, and rows of a with them: as many sums as registers hold beside what a step needs.
constexpr int DOT_VECTORS = LANES == 16 ? 4 : 2;
constexpr int dot_rows(int vectors) {
#if defined(FXQ_AVX512VNNI)
    return vectors == 4 ? 6 : vectors == 3 ? 8 : 12;
#elif defined(FXQ_AVXVNNI)
    return vectors == 2 ? 6 : 8;
#else
    return vectors == 2 ? 4 : 6;
#endif
}

// Four bytes (i, t) lie at data + i * row + t * step.
struct FourBytes {
    const uint8_t* data;
    int64_t row, step;
};

// Four bytes for each lane: row t begins at data + t * pitch.
struct FourBytesRows {
    const int32_t* data;
    int64_t pitch;
};

// Calls end(i, k, sum) with each vector k of each row i.
template <int rows, int vectors, class Start, class End>
FXQ_INLINE void dot_block(const FourBytes& a, const FourBytesRows& b, int64_t steps, int64_t first_row,
                          int64_t first_vector, const Start& start, const End& end) {
    I sum[rows][vectors];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int k = 0; k < vectors; ++k) sum[i][k] = start(first_row + i, first_vector + k);
    const uint8_t* left = a.data + first_row * a.row;
    const int32_t* right = b.data + first_vector * LANES;
    for (int64_t t = 0; t < steps; ++t, left += a.step, right += b.pitch) {
        I v[vectors];
#pragma GCC unroll 4
        for (int k = 0; k < vectors; ++k) v[k] = load_int(right + k * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) {
            int32_t four;
            memcpy(&four, left + i * a.row, 4);
            const I x = set_int(four);
#pragma GCC unroll 4
            for (int k = 0; k < vectors; ++k) add_dot(&sum[i][k], x, v[k]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int k = 0; k < vectors; ++k) end(first_row + i, first_vector + k, sum[i][k]);
}

template <int rows, int vectors, class Start, class End>
inline void dot_rows_of(const FourBytes& a, const FourBytesRows& b, int64_t steps, int64_t row, int64_t count,
                        int64_t vector, const Start& start, const End& end) {
    for (; count - row >= rows; row += rows) dot_block<rows, vectors>(a, b, steps, row, vector, start, end);
    if constexpr (rows > 1) {
        if (row < count) dot_rows_of<rows / 2, vectors>(a, b, steps, row, count, vector, start, end);
    }
}

// `rows` rows of `vectors` vectors.
template <class Start, class End>
inline void dot_product(const FourBytes& a, const FourBytesRows& b, int64_t rows, int64_t vectors, int64_t steps,
                        const Start& start, const End& end) {
    for (int64_t k = 0; k < vectors; k += DOT_VECTORS) {
        const int64_t now = vectors - k < DOT_VECTORS ? vectors - k : DOT_VECTORS;
        if (now == 1) dot_rows_of<dot_rows(1), 1>(a, b, steps, 0, rows, k, start, end);
        if (now == 2) dot_rows_of<dot_rows(2), 2>(a, b, steps, 0, rows, k, start, end);
        if constexpr (DOT_VECTORS == 4) {
            if (now == 3) dot_rows_of<dot_rows(3), 3>(a, b, steps, 0, rows, k, start, end);
            if (now == 4) dot_rows_of<dot_rows(4), 4>(a, b, steps, 0, rows, k, start, end);
        }
    }
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
