// Writing the halo of a value: whoever writes rows of a value writes `fill` around them.
#ifndef FXQ_HALO_H
#define FXQ_HALO_H

#include "kernel.h"

namespace fxq {

// Writes the halo that belongs to rows y_begin..y_end-1 of one image: their left and right columns, the rows above with
// row 0, the rows below with the last row. `image` is the address of element (0, 0, 0) of the image.
void write_halo(const Tensor& tensor, uint8_t* image, int64_t y_begin, int64_t y_end);

inline bool has_halo(const Tensor& tensor) { return (tensor.top | tensor.bottom | tensor.left | tensor.right) != 0; }

}  // namespace fxq
#endif
