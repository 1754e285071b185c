// Linear layers with weights of s8 or int4 codes and float32 rows, for CPUs with AVX512.
#ifndef FXQ_WEIGHT_ONLY_H
#define FXQ_WEIGHT_ONLY_H

#include "dynamic.h"

// A weight in strips of 64 outputs, the last filled up with zeros. native_weight_only.py lays it out.
struct FxqWeightOnly {
    int64_t outputs;
    int64_t inputs;
    int64_t group;         // inputs that share a scale, a multiple of 8: int4 codes; 0: s8 codes, a scale an output
    const int8_t* codes;   // s8 (strips, inputs, 64), or 8 inputs in 32 bits, lowest first, (strips, inputs / 8, 64)
    const float* scale;    // (strips, 64), or (strips, groups, 64)
    const float* offset;   // the same of int4 codes, which stand for (code - 8) * scale + offset; else null
    const float* bias;     // (outputs,), or null
};

// x: `rows` rows of floats, `row` apart; out: (rows, outputs), contiguous.
FXQ_EXPORT void fxq_weight_only_run(const FxqWeightOnly* layer, const float* x, int64_t rows, int64_t row, float* out,
                                    int threads);

#endif
