// One block of a convolution: some pixels by up to 32 output channels.
#ifndef FXQ_CONV_JOB_H
#define FXQ_CONV_JOB_H

#include "conv_state.h"
#include "functions.h"
#include "result.h"

namespace fxq {
namespace FXQ_NS {

enum Finish { FINISH_PLAIN = 0, FINISH_RESIDUAL = 1, FINISH_ANY = 2 };  // ANY: through memory

// Addresses of pixels: of the window's first tap in the input, of the output, of the residual.
struct Pixels {
    static constexpr int64_t CAPACITY = 512;
    const uint8_t* x[CAPACITY];
    uint8_t* y[CAPACITY];
    const uint8_t* r[CAPACITY];
};

struct Job {
    const fxq_operation* record;
    int32_t type;  // of the output
    Finish finish;
    bool small, bounded;  // see ConvState
    const Segment* segments;
    int64_t segment_count;
    int64_t steps;  // of all segments
    Block block;
    const int8_t* panel;
    const int32_t* start;
    const float *scale, *bias;
};

// The epilogue of any layer for `count` pixels whose sums stand in `sums` ([pixel][32]).
template <int function>
inline void finish_pixels(const Job& job, const Pixels& pixels, int64_t first, int64_t count, const int32_t* sums) {
    const fxq_operation& record = *job.record;
    const Codes codes = codes_of(record);
    const F scale = set(record.floats[0]), offset = set(record.floats[1]);
    const int32_t kind = record.ints[13];
    const Activation<function> activation(record.floats + 3);
    const ScaledActivation<function> scaled(record.floats + 3, record.floats[2]);
    for (int64_t c = 0; c < job.block.width; c += LANES) {
        const int64_t left = job.block.width - c, channel = job.block.first + c;
        const F factor = load(job.scale + c), bias = load(job.bias + c);
        for (int64_t p = 0; p < count; ++p) {
            F v = fma(to_float(load_int(sums + p * BLOCK + c)), factor, bias);
            if (kind == 1) v = fma(to_float(bytes_partial(pixels.r[first + p] + channel, left)), scale, add(v, offset));
            if (kind == 2)
                v = add(v, load_partial(reinterpret_cast<const float*>(pixels.r[first + p]) + channel, left));
            if (job.type == FXQ_F32)
                store_partial(reinterpret_cast<float*>(pixels.y[first + p]) + channel, activation(v), left);
            else
                put_bytes_partial(pixels.y[first + p] + channel, codes(scaled(v)), left);
        }
    }
}

inline void finish_any(const Job& job, const Pixels& pixels, int64_t first, int64_t count, const int32_t* sums) {
    with_function(job.record->ints[9], [&](auto tag) {
        finish_pixels<decltype(tag)::value>(job, pixels, first, count, sums);
    });
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
