// silu(v) = v / 2 + an even function of v, which is cubic in each of 32 pieces of |v|: no division, no exponential.
#ifndef FXQ_SILU_H
#define FXQ_SILU_H

#include "pieces.h"

namespace fxq {
namespace FXQ_NS {

// The coefficients of powers 0 to 3 of t = |v| + 1 in each piece. A piece is given by the last two bits of t's exponent and
// the first three of its mantissa: 0 to 7 are pieces of 2 .. 4, 24 to 31 of 1 .. 2. Fitted for this file in double
// precision at Chebyshev nodes; the piece from 15 on is linear.
constexpr float SILU_ROWS[32][4] = {
    {0.38726383f, -0.7875026f, 0.45651028f, -0.050905153f},
    {0.33866462f, -0.7232991f, 0.42822587f, -0.046749894f},
    {0.22558263f, -0.5880099f, 0.37425166f, -0.039569236f},
    {0.051405765f, -0.39819062f, 0.30527267f, -0.03121089f},
    {-0.16876487f, -0.17802304f, 0.23186335f, -0.023049712f},
    {-0.41350117f, 0.048016176f, 0.16225606f, -0.015902923f},
    {-0.6606926f, 0.26009524f, 0.10159179f, -0.010117453f},
    {-0.8916271f, 0.44506705f, 0.05219701f, -0.0057198596f},
    {-1.1749858f, 0.6555587f, 5.9287846e-5f, -0.0014136937f},
    {-1.4256243f, 0.8238874f, -0.037641842f, 0.0014023042f},
    {-1.5282546f, 0.8861861f, -0.050251257f, 0.0022532844f},
    {-1.5183245f, 0.8811184f, -0.04939313f, 0.0022051039f},
    {-1.4370786f, 0.84062344f, -0.04266341f, 0.0018322064f},
    {-1.319187f, 0.78622574f, -0.03429461f, 0.0014029363f},
    {-1.1893835f, 0.73055905f, -0.026335308f, 0.001023512f},
    {-1.0632645f, 0.6800586f, -0.019593623f, 0.0007234575f},
    {-0.901092f, 0.6198536f, -0.012141051f, 0.00041584688f},
    {-0.7378593f, 0.56515026f, -0.0060271854f, 0.00018796495f},
    {-0.63361746f, 0.53370965f, -0.00286496f, 8.190662e-5f},
    {-0.571957f, 0.51680565f, -0.0013197276f, 3.480692e-5f},
    {-0.53745115f, 0.5081362f, -0.00059347664f, 1.45217355e-5f},
    {-0.5189483f, 0.50384605f, -0.00026182082f, 5.9734393e-6f},
    {-0.5093599f, 0.5017822f, -0.00011370875f, 2.4296387e-6f},
    {-0.5f, 0.5f, 0.0f, 0.0f},
    {0.25560978f, -0.51640373f, 0.26598838f, -0.0051943734f},
    {0.2700627f, -0.55492115f, 0.30022255f, -0.0153419925f},
    {0.28849134f, -0.59914666f, 0.3356151f, -0.02478717f},
    {0.31012717f, -0.64637107f, 0.36998573f, -0.033128526f},
    {0.33342487f, -0.6930069f, 0.40111223f, -0.04005552f},
    {0.35610613f, -0.73493916f, 0.4269595f, -0.045367617f},
    {0.37532702f, -0.7679626f, 0.44587597f, -0.04898027f},
    {0.3879421f, -0.78822875f, 0.45673037f, -0.050918434f},
};
constexpr PieceTable SILU_EVEN(SILU_ROWS);

// factor * silu(v): the factor is in the coefficients.
class Silu {
   public:
    explicit Silu(float factor = 1.0f) : pieces_(SILU_EVEN, factor), half_(set(0.5f * factor)) {}

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
