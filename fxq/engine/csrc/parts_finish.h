// The epilogue of u8 results without a residual, of sums that stand in parts.
#ifndef FXQ_PARTS_FINISH_H
#define FXQ_PARTS_FINISH_H

#include "parts_vector.h"
#include "functions.h"
#include "result.h"

namespace fxq {
namespace FXQ_NS {

// [part][lane], of a chunk.
struct Factors {
    const float *scale, *bias;
};

// `clamps`: values may leave the range of s32.
template <int function, bool clamps>
class PartsFinish {
   public:
    PartsFinish(const fxq_operation& record, const Factors& factors)
        : scale_(parts(factors.scale)),
          bias_(parts(factors.bias)),
          codes_(codes_of(record)),
          zero_(words(record.ints[10])),
          lowest_(set_bytes(record.ints[11])),
          highest_(set_bytes(record.ints[12])),
          activation_(record.floats + 3, record.floats[2]) {}

    // Codes in the order of channels.
    FXQ_INLINE I operator()(const Parts& sums) const {
        const Parts whole{one(sums.a, scale_.a, bias_.a), one(sums.b, scale_.b, bias_.b),
                          one(sums.c, scale_.c, bias_.c), one(sums.d, scale_.d, bias_.d)};
        return pack_parts(whole, zero_, lowest_, highest_);
    }

   private:
    struct Reals {
        F a, b, c, d;
    };

    static Reals parts(const float* p) {
        return {load(p), load(p + LANES), load(p + 2 * LANES), load(p + 3 * LANES)};
    }

    FXQ_INLINE I one(I sum, F scale, F bias) const {
        F v = activation_(fma(to_float(sum), scale, bias));
        if (clamps) v = maximum(minimum(v, codes_.high), codes_.low);
        return to_int(v);
    }

    const Reals scale_, bias_;
    const Codes codes_;
    const I zero_, lowest_, highest_;
    const ScaledActivation<function> activation_;
};

}  // namespace FXQ_NS
}  // namespace fxq
#endif
