// A channel's map of u8 codes that scales, shifts and rounds them, as 16-bit whole numbers.
#ifndef FXQ_SCALING_FIT_H
#define FXQ_SCALING_FIT_H

#include <stdint.h>

namespace fxq {

// With w = x ^ flip:
//     clamp(min(max(min(floor((256 w + rest) * factor / 2^16) + plus, 65535) - minus, 0) >> shift, 255), lowest, highest)
// `rest` makes up for what `plus` and `minus` are too coarse for.
struct Scaling {
    uint16_t factor = 0, plus = 0, minus = 0, shift = 0;
    uint8_t flip = 0, rest = 0;
};

// Finds numbers that give table[x] for every x. `slope` is that of the real map, in codes; the table's values lie in lowest
// to highest. False where there are none near the slope.
bool fit_scaling(const uint8_t (&table)[256], double slope, int32_t lowest, int32_t highest, Scaling* found);

}  // namespace fxq
#endif
