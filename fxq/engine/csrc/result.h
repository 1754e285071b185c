// From real values to codes: the last step of every operation with a u8 result.
#ifndef FXQ_RESULT_H
#define FXQ_RESULT_H

#include "kernel.h"
#include "vec.h"

namespace fxq {
namespace FXQ_NS {

// clamp(rne(v) + zero, lowest, highest), computed by clamping v to the whole numbers lowest - zero and highest - zero
// first, which gives the same and keeps the conversion in range. Not a number becomes the highest code.
struct Codes {
    F low, high;
    I zero;

    Codes(int32_t zero_point, int32_t lowest, int32_t highest)
        : low(set(static_cast<float>(lowest - zero_point))),
          high(set(static_cast<float>(highest - zero_point))),
          zero(set_int(zero_point)) {}

    I operator()(F v) const { return add(to_int(maximum(minimum(v, high), low)), zero); }
};

// Of ints 10, 11, 12.
inline Codes codes_of(const fxq_operation& record) { return Codes(record.ints[10], record.ints[11], record.ints[12]); }

}  // namespace FXQ_NS
}  // namespace fxq
#endif
