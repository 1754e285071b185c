// What a vector convolution prepares: weights in panels, and how its window is cut into runs of bytes.
#ifndef FXQ_CONV_STATE_H
#define FXQ_CONV_STATE_H

#include "kernel.h"

namespace fxq {

constexpr int64_t BLOCK = 32;  // output channels of a panel

// A run of neighbouring bytes of the window: one tap, or a whole kernel row where its taps are adjacent in memory.
struct Segment {
    int64_t offset;  // from the address of the window's first tap
    int64_t steps;   // of `unit` bytes, the last one padded with zero weights
};

// Up to 32 output channels that read the same input channels.
struct Block {
    int32_t first, width;  // output channels
    int64_t input;         // first input channel
};

struct ConvState : State {
    ~ConvState() override;  // not inline: kernels for several machines share it
    Buffer panels;  // [block][segment][step][unit / 4][2][16][4]: 4 inputs of each of 2 * 16 outputs
    Buffer start, scale, bias;  // [block][32], zero behind the last channel
    Buffer blocks, segments;
    int64_t block_count = 0, segment_count = 0;
    int64_t panel_bytes = 0;  // of one block
    bool bounded = false;     // no real value can leave the range of s32
    bool small = false;       // every |weight| <= 64: two products and their sum fit 16 bits
};

// Whether |fma(acc, scale, bias)| with the residual, and after a function its scaled result, stay below 2^30 whatever the
// input: the conversion to s32 is then exact without bounding the value first. Of dense and depthwise layers.
bool values_bounded(const Operation& op);

// Fills in blocks, start, scale, bias and `bounded`. False without memory.
bool prepare_blocks(const Operation& op, ConvState* state);

// Fills `state`, with panels whose steps have `unit` bytes of input (a multiple of 4). Returns nullptr or why not.
const char* pack_convolution(const Operation& op, int64_t unit, ConvState* state);

}  // namespace fxq
#endif
