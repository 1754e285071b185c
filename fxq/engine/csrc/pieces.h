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

// p(index): the coefficients of piece (index mod 32).
class Pieces {
   public:
#if defined(FXQ_AVX512VNNI)

    explicit Pieces(const PieceTable& table)
        : none_(table.column[0]), first_(table.column[1]), second_(table.column[2]), third_(table.column[3]) {}
    Powers operator()(I index) const { return {none_(index), first_(index), second_(index), third_(index)}; }

   private:
    struct Column {
        F low, high;
        explicit Column(const float* p) : low(_mm512_load_ps(p)), high(_mm512_load_ps(p + 16)) {
            // Else g++ reads the table again for every vector.
            __asm__("" : "+v"(low), "+v"(high));
        }
        F operator()(I index) const { return _mm512_permutex2var_ps(low, index, high); }
    };
    const Column none_, first_, second_, third_;

#elif defined(FXQ_AVX2) || defined(FXQ_AVXVNNI)

    explicit Pieces(const PieceTable& table) : rows_(table.row[0]) {}
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
    const float* const rows_;

#else

    explicit Pieces(const PieceTable& table) : row_(table.row) {}
    Powers operator()(I index) const {
        const float* row = row_[index & 31];
        return {row[0], row[1], row[2], row[3]};
    }

   private:
    const float (*const row_)[4];

#endif
};

// v / 2 + an even function of v, which is cubic in each of 32 pieces of |v|: no division, no exponential. The piece of
// |v| + 1 is given by the last two bits of its exponent and the first three of its mantissa: 0 to 7 are pieces of 2 .. 4,
// 24 to 31 of 1 .. 2. The one from 15 on goes on for ever.
class HalfAndEven {
   public:
    explicit HalfAndEven(const PieceTable& even) : pieces_(even) {}
    F operator()(F v) const {
        const F size = add(absolute(v), set(1.0f));
        const I bits = as_int(minimum(size, set(15.5f)));
        const F part = sub(size, as_float(both(bits, set_int(-(1 << 20)))));  // from the first value of the piece on
        const Powers c = pieces_(shift_right(bits, 20));
        return fma(v, set(0.5f), fma(fma(fma(c.third, part, c.second), part, c.first), part, c.none));
    }

   private:
    const Pieces pieces_;
};

}  // namespace FXQ_NS
}  // namespace fxq
#endif
