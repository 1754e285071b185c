// Maps of codes in 16-bit whole numbers (scaling_fit.h), CHUNK channels at once.
#ifndef FXQ_SCALING_VECTOR_H
#define FXQ_SCALING_VECTOR_H

#include <new>

#include "kernel.h"
#include "parts_vector.h"
#include "scaling_fit.h"

namespace fxq {
namespace FXQ_NS {

// Words stand as a chunk's bytes are unpacked: of each 128-bit lane first the lower eight, for all lanes, then the upper.
struct alignas(64) ScalingChunk {
    static constexpr int64_t HALF = CHUNK / 2;
    uint8_t flip[CHUNK], rest[CHUNK];
    uint16_t factor[CHUNK], plus[CHUNK], minus[CHUNK], divisor[CHUNK];

    FXQ_INLINE void put(int64_t channel, const Scaling& scaling) {
        const int64_t word = channel % 16 / 8 * HALF + channel / 16 * 8 + channel % 8;
        flip[channel] = scaling.flip;
        rest[channel] = scaling.rest;
        factor[word] = scaling.factor;
        plus[word] = scaling.plus;
        minus[word] = scaling.minus;
        divisor[word] = static_cast<uint16_t>(1 << (16 - scaling.shift));
    }
};

// A state that `fill` has filled; nullptr where it cannot, or there is no memory.
template <class Filled>
State* filled_by(bool (*fill)(const Operation&, Filled*), const Operation& op) {
    Filled* state = new (std::nothrow) Filled;
    if (state && fill(op, state)) return state;
    delete state;
    return nullptr;
}

#if defined(FXQ_AVX512VNNI)
FXQ_INLINE I low_half(I low, I high) { return _mm512_unpacklo_epi8(low, high); }
FXQ_INLINE I high_half(I low, I high) { return _mm512_unpackhi_epi8(low, high); }
FXQ_INLINE I pack_halves(I a, I b) { return _mm512_packus_epi16(a, b); }
FXQ_INLINE I product(I a, I b) { return _mm512_mulhi_epu16(a, b); }
FXQ_INLINE I bounded_sum(I a, I b) { return _mm512_adds_epu16(a, b); }
FXQ_INLINE I bounded_difference(I a, I b) { return _mm512_subs_epu16(a, b); }
FXQ_INLINE I flipped(I a, I b) { return _mm512_xor_si512(a, b); }
#else
FXQ_INLINE I low_half(I low, I high) { return _mm256_unpacklo_epi8(low, high); }
FXQ_INLINE I high_half(I low, I high) { return _mm256_unpackhi_epi8(low, high); }
FXQ_INLINE I pack_halves(I a, I b) { return _mm256_packus_epi16(a, b); }
FXQ_INLINE I product(I a, I b) { return _mm256_mulhi_epu16(a, b); }
FXQ_INLINE I bounded_sum(I a, I b) { return _mm256_adds_epu16(a, b); }
FXQ_INLINE I bounded_difference(I a, I b) { return _mm256_subs_epu16(a, b); }
FXQ_INLINE I flipped(I a, I b) { return _mm256_xor_si256(a, b); }
#endif

// The numbers of a chunk, in registers. `limited`: to fewer than all codes.
template <bool limited>
class Scaler {
   public:
    Scaler(const ScalingChunk& chunk, const fxq_operation& record)
        : flip_(load_bytes(chunk.flip)),
          rest_(load_bytes(chunk.rest)),
          low_(chunk, 0),
          high_(chunk, ScalingChunk::HALF),
          lowest_(set_bytes(record.ints[11])),
          highest_(set_bytes(record.ints[12])) {}

    FXQ_INLINE I operator()(I x) const {
        const I w = flipped(x, flip_);
        const I codes = pack_halves(low_(low_half(rest_, w)), high_(high_half(rest_, w)));
        return limited ? larger(smaller(codes, highest_), lowest_) : codes;
    }

   private:
    struct Half {
        I factor, plus, minus, divisor;
        Half(const ScalingChunk& chunk, int64_t first)
            : factor(words_at(chunk.factor + first)),
              plus(words_at(chunk.plus + first)),
              minus(words_at(chunk.minus + first)),
              divisor(words_at(chunk.divisor + first)) {}
        static I words_at(const uint16_t* p) { return load_bytes(reinterpret_cast<const uint8_t*>(p)); }
        FXQ_INLINE I operator()(I x) const {
            return product(bounded_difference(bounded_sum(product(x, factor), plus), minus), divisor);
        }
    };

    const I flip_, rest_;
    const Half low_, high_;
    const I lowest_, highest_;
};

}  // namespace FXQ_NS
}  // namespace fxq
#endif
