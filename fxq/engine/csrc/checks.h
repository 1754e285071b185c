// The check of each operation, see Check in kernel.h. One source each: check_<family>.cpp.
#ifndef FXQ_CHECKS_H
#define FXQ_CHECKS_H

#include "kernel.h"

namespace fxq {

const char* check_load(const Operation& op);
const char* check_store(const Operation& op);
const char* check_conv(const Operation& op);
const char* check_depthwise(const Operation& op);
const char* check_lookup(const Operation& op);
const char* check_copy(const Operation& op);
const char* check_binary(const Operation& op);  // add, multiply
const char* check_add_real(const Operation& op);
const char* check_unary(const Operation& op);
const char* check_quantise(const Operation& op);
const char* check_dequantise(const Operation& op);
const char* check_max_pool(const Operation& op);
const char* check_average_pool(const Operation& op);
const char* check_resize(const Operation& op);
const char* check_layer_norm(const Operation& op);
const char* check_rms_norm(const Operation& op);
const char* check_softmax(const Operation& op);
const char* check_attention(const Operation& op);
const char* check_code_attention(const Operation& op);

// What several checks need.
inline bool between(int64_t value, int64_t low, int64_t high) { return value >= low && value <= high; }

inline bool same_shape(const Tensor& a, const Tensor& b) {
    return a.height == b.height && a.width == b.width && a.channels == b.channels;
}

// Channels that lie side by side.
const char* check_dense(const Tensor& tensor);
// ints 10, 11, 12 of a u8 result: output zero point, lowest, highest.
const char* check_limits(const Operation& op);
// int 9: a known function.
const char* check_function(const Operation& op);
// ints 0..7: kernel, strides, dilations, padding; every tap of every output pixel lies in the input or its halo.
// With `inside` the taps may also lie outside of the halo (they are left out by the kernel).
const char* check_window(const Operation& op, bool inside);

}  // namespace fxq
#endif
