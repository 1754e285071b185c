// silu(v) = v / 2 + an even function of v, which is cubic in each of 32 pieces of |v|: no division, no exponential.
#ifndef FXQ_SILU_H
#define FXQ_SILU_H

#include "pieces.h"

namespace fxq {
namespace FXQ_NS {

// The coefficients of powers 0 to 3 of each piece. The piece of |v| + 1 is given by the last two bits of its exponent and
// the first three of its mantissa: 0 to 7 are pieces of 2 .. 4, 24 to 31 of 1 .. 2. Fitted for this file in double
// precision at Chebyshev nodes; the piece from 15 on is linear.
constexpr float SILU_ROWS[32][4] = {
    {0.23105852f, 0.42767668f, 0.15107936f, -0.050905153f},
    {0.34662464f, 0.49370337f, 0.11266409f, -0.046749894f},
    {0.47636148f, 0.5413252f, 0.07748239f, -0.039569236f},
    {0.61591715f, 0.572712f, 0.047782816f, -0.03121089f},
    {0.76159394f, 0.5908148f, 0.02441594f, -0.023049712f},
    {0.9104635f, 0.5987567f, 0.0072025643f, -0.015902923f},
    {1.0603544f, 0.5994214f, -0.0046414617f, -0.010117453f},
    {1.2097616f, 0.59523803f, -0.012151412f, -0.0057198596f},
    {1.3577213f, 0.5881757f, -0.016905036f, -0.0014136937f},
    {1.6474068f, 0.5703008f, -0.018710736f, 0.0014023042f},
    {1.928055f, 0.5526699f, -0.01645199f, 0.0022532844f},
    {2.200559f, 0.5379072f, -0.013008914f, 0.0022051039f},
    {2.4665358f, 0.5265408f, -0.009683696f, 0.0018322064f},
    {2.7276144f, 0.518218f, -0.0069373525f, 0.0014029363f},
    {2.9851644f, 0.512321f, -0.004841557f, 0.001023512f},
    {3.2402425f, 0.5082377f, -0.0033158285f, 0.0007234575f},
    {3.4936233f, 0.5054394f, -0.002160726f, 0.00041584688f},
    {3.9973176f, 0.5023364f, -0.00095213193f, 0.00018796495f},
    {4.4988894f, 0.5009824f, -0.0004077616f, 8.190662e-05f},
    {4.999546f, 0.50040656f, -0.00017109934f, 3.480692e-05f},
    {5.4998164f, 0.5001662f, -7.069419e-05f, 1.45217355e-05f},
    {5.999926f, 0.50006723f, -2.8856684e-05f, 5.9734393e-06f},
    {6.4999704f, 0.500027f, -1.1663929e-05f, 2.4296387e-06f},
    {7.0f, 0.5f, 0.0f, 0.0f},
    {0.0f, 0.0f, 0.25014204f, -0.0036391534f},
    {0.0039012094f, 0.06232793f, 0.24844334f, -0.0153419925f},
    {0.015544159f, 0.12370119f, 0.2426632f, -0.02478717f},
    {0.034750003f, 0.18318883f, 0.23333058f, -0.033128526f},
    {0.06122969f, 0.23995507f, 0.22086237f, -0.04005552f},
    {0.09459681f, 0.2932827f, 0.20579238f, -0.045367617f},
    {0.13438404f, 0.34259713f, 0.18872955f, -0.04898027f},
    {0.1800619f, 0.38747975f, 0.17031418f, -0.050918434f},
};
constexpr PieceTable SILU_EVEN(SILU_ROWS);

class Silu {
   public:
    F operator()(F v) const {
        const F size = add(absolute(v), set(1.0f));
        const I bits = as_int(minimum(size, set(15.5f)));
        const F part = sub(size, as_float(both(bits, set_int(-(1 << 20)))));  // from the first value of the piece on
        const Powers c = pieces_(shift_right(bits, 20));
        return fma(v, set(0.5f), fma(fma(fma(c.third, part, c.second), part, c.first), part, c.none));
    }

   private:
    const Pieces pieces_{SILU_EVEN};
};

}  // namespace FXQ_NS
}  // namespace fxq
#endif
