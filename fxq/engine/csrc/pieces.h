// Cubics in 32 pieces: each lane picks the coefficients of its own piece.
#ifndef FXQ_PIECES_H
#define FXQ_PIECES_H

#include "vec.h"

namespace fxq {
namespace FXQ_NS {

// The coefficients of powers 0 to 3 of each piece, in both orders.
struct PieceTable {
    alignas(64) float column[4][32];
    alignas(64) float row[32][4];

    constexpr explicit PieceTable(const float (&rows)[32][4]) : column{}, row{} {
        for (int i = 0; i < 32; ++i)
            for (int k = 0; k < 4; ++k) column[k][i] = row[i][k] = rows[i][k];
    }
};

struct Powers {
    F none, first, second, third;
};

// p(index): the coefficients of piece (index mod 32), times `factor`.
class Pieces {
   public:
#if defined(FXQ_AVX512VNNI)

    Pieces(const PieceTable& table, float factor)
        : none_(table.column[0], factor),
          first_(table.column[1], factor),
          second_(table.column[2], factor),
          third_(table.column[3], factor) {}
    Powers operator()(I index) const { return {none_(index), first_(index), second_(index), third_(index)}; }

   private:
    struct Column {
        F low, high;
        Column(const float* p, float factor)
            : low(mul(_mm512_load_ps(p), set(factor))), high(mul(_mm512_load_ps(p + 16), set(factor))) {
            // Else g++ reads the table again for every vector.
            __asm__("" : "+v"(low), "+v"(high));
        }
        F operator()(I index) const { return _mm512_permutex2var_ps(low, index, high); }
    };
    const Column none_, first_, second_, third_;

#elif defined(FXQ_AVX2) || defined(FXQ_AVXVNNI)

    Pieces(const PieceTable& table, float factor) {
        for (int i = 0; i < 128; i += 8) _mm256_store_ps(rows_ + i, mul(_mm256_load_ps(table.row[0] + i), set(factor)));
    }
    Powers operator()(I index) const {  // rows are read and turned around: gathers take longer
        alignas(32) uint32_t at[8];     // in floats
        _mm256_store_si256(reinterpret_cast<__m256i*>(at), shift_left(both(index, set_int(31)), 2));
        const F a = rows(at[0], at[4]), b = rows(at[1], at[5]), c = rows(at[2], at[6]), d = rows(at[3], at[7]);
        const F ab = _mm256_unpacklo_ps(a, b), AB = _mm256_unpackhi_ps(a, b);
        const F cd = _mm256_unpacklo_ps(c, d), CD = _mm256_unpackhi_ps(c, d);
        return {_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee), _mm256_shuffle_ps(AB, CD, 0x44),
                _mm256_shuffle_ps(AB, CD, 0xee)};
    }

   private:
    F rows(uint32_t low, uint32_t high) const {
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(rows_ + low)), _mm_load_ps(rows_ + high), 1);
    }
    alignas(32) float rows_[128];

#else

    Pieces(const PieceTable& table, float factor) : row_(table.row), factor_(factor) {}
    Powers operator()(I index) const {
        const float* row = row_[index & 31];
        return {row[0] * factor_, row[1] * factor_, row[2] * factor_, row[3] * factor_};
    }

   private:
    const float (*const row_)[4];
    const float factor_;

#endif
};

// v / 2 + an even function of v, which is cubic in t = |v| + 1 in each of 32 pieces: no division, no exponential. A piece is
// given by the last two bits of t's exponent and the first three of its mantissa: 0 to 7 are pieces of 2 .. 4, 24 to 31 of
// 1 .. 2; the one from 15 on goes on for ever. A factor is in the coefficients.
class HalfAndEven {
   public:
    HalfAndEven(const PieceTable& even, float factor) : pieces_(even, factor), half_(set(0.5f * factor)) {}

    F operator()(F v) const {
        constexpr int32_t LAST = 0x41780000;  // the bits of 15.5
        const F t = add(absolute(v), set(1.0f));
        const Powers c = pieces_(shift_right(minimum(as_int(t), set_int(LAST)), 20));
        return fma(v, half_, fma(fma(fma(c.third, t, c.second), t, c.first), t, c.none));
    }

   private:
    const Pieces pieces_;
    const F half_;
};

}  // namespace FXQ_NS
}  // namespace fxq
#endif
