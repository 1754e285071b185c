// Layers on s8 weights that quantise what they read, for CPUs with AVX512-VNNI: linear layers, and the steps of LSTM,
// GRU and RNN layers, a whole sequence in one call.
//
// The arithmetic is that of fxq/nn/dynamic.py and fxq/nn/recurrent_steps.py: rows of floats become u8 codes
// round(x / s) + z, which are multiplied by the weights in exact integers; the rest is computed in float32. Every value
// is computed alone, so that results do not depend on the number of threads.
#ifndef FXQ_DYNAMIC_H
#define FXQ_DYNAMIC_H

#include <cstdint>

#define FXQ_EXPORT extern "C" __attribute__((visibility("default")))

namespace fxq {

// The order is that of KINDS in native_recurrent.py.
enum Kind : int32_t { LSTM = 0, GRU = 1, RNN_TANH = 2, RNN_RELU = 3 };

// What shares a scale. The order is that of SCALES in native_library.py.
enum Scales : int32_t {
    BY_ROW = 0,     // s = max|x| / 127 of each row, z = 128
    OF_ALL = 1,     // the same of all rows
    OF_RANGE = 2,   // all codes for the range of all rows, as QParams.from_range has them
};

constexpr int64_t LANES = 16;  // floats of a vector, and outputs of a block of weights

constexpr int64_t padded(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// How the outputs of all gates lie in memory. A strip holds `blocks` blocks of 16 outputs. With several gates it has a
// block of each: all that 16 new states need. With one gate its blocks follow each other.
struct Strips {
    int64_t blocks, units, count;

    Strips(int64_t gates, int64_t rows)
        : blocks(gates == 1 ? 4 : gates), units(gates == 1 ? 4 * LANES : LANES), count(padded(rows, units) / units) {}

    // Where the output `row` of `gate` lies.
    int64_t place(int64_t gate, int64_t row) const {
        return (row / units * blocks + (row % units) / LANES + gate) * LANES + row % LANES;
    }
    int64_t width() const { return blocks * LANES; }
};

// Bytes of one output's weights.
constexpr int64_t depth_of(int64_t inputs) { return padded(inputs, 4); }

}  // namespace fxq

// A weight as fxq_dynamic_pack lays it out: strips, each of 4 inputs of all its outputs after 4 inputs. The product
// reads one stream, and one 64-byte load feeds one dot-product instruction.
struct FxqWeight {
    int64_t gates;
    int64_t rows;          // outputs of each gate
    int64_t inputs;
    const int8_t* codes;
    const int32_t* sums;   // of each row of the weight, where Strips::place says
    const float* scale;    // the same of its scales
};

struct FxqLinear {
    FxqWeight weight;
    int32_t scales;
    const float* bias;     // (outputs,), or null
};

// One layer and direction. Gates come in the order i, f, o, g for LSTM, and r, z, n for GRU.
struct FxqRecurrent {
    FxqWeight weight;
    int32_t kind;
    int32_t scales;        // BY_ROW or OF_ALL
    const float* bias;     // of GRU's new gate, (hidden,), or null
};

// Rows of time-major data: `gates` and `out` hold `steps` steps, `step` floats apart, of rows that lie `row` apart.
struct FxqSequence {
    int64_t steps;
    int64_t batch;
    const float* gates;
    int64_t gates_step;
    int64_t gates_row;
    float* out;
    int64_t out_step;
    int64_t out_row;
    float* h;              // (batch, hidden), read and written
    float* c;              // the same for LSTM
    int32_t backwards;
};

FXQ_EXPORT int fxq_dynamic_version();
FXQ_EXPORT int fxq_dynamic_runs();

// Bytes of `codes`, and how many `sums` and `scale` there are.
FXQ_EXPORT int64_t fxq_dynamic_packed_bytes(int64_t gates, int64_t rows, int64_t inputs);
FXQ_EXPORT int64_t fxq_dynamic_packed_width(int64_t gates, int64_t rows);

// Packs `weight`, s8 (gates x rows, inputs), and `scale`, (gates x rows,), into zeroed memory of the sizes above.
FXQ_EXPORT void fxq_dynamic_pack(const int8_t* weight, const float* scale, int64_t gates, int64_t rows, int64_t inputs,
                                 int8_t* codes, int32_t* sums, float* scales);

// x: `rows` rows of floats, `row` apart; out: (rows, outputs), contiguous. With OF_RANGE 1 where a value is not finite,
// and `out` is not written; else 0.
FXQ_EXPORT int fxq_linear_run(const FxqLinear* layer, const float* x, int64_t rows, int64_t row, float* out,
                              int threads);

FXQ_EXPORT void fxq_recurrent_run(const FxqRecurrent* layer, const FxqSequence* sequence, int threads);

#endif
