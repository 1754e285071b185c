#include "dynamic.h"

using fxq::depth_of;
using fxq::LANES;
using fxq::Strips;

FXQ_EXPORT int fxq_dynamic_version() { return 4; }

FXQ_EXPORT int fxq_dynamic_runs() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
#else
    return 0;
#endif
}

FXQ_EXPORT int64_t fxq_dynamic_packed_width(int64_t gates, int64_t rows) {
    const Strips strips(gates, rows);
    return strips.count * strips.width();
}

FXQ_EXPORT int64_t fxq_dynamic_packed_bytes(int64_t gates, int64_t rows, int64_t inputs) {
    return fxq_dynamic_packed_width(gates, rows) * depth_of(inputs);
}

FXQ_EXPORT void fxq_dynamic_pack(const int8_t* weight, const float* scale, int64_t gates, int64_t rows, int64_t inputs,
                                 int8_t* codes, int32_t* sums, float* scales) {
    const Strips strips(gates, rows);
    const int64_t width = strips.width(), depth = depth_of(inputs);
    for (int64_t gate = 0; gate < gates; ++gate)
        for (int64_t n = 0; n < rows; ++n) {
            const int8_t* row = weight + (gate * rows + n) * inputs;
            const int64_t at = strips.place(gate, n);
            int8_t* four = codes + at / width * width * depth + at % width * 4;
            int32_t sum = 0;
            for (int64_t k = 0; k < inputs; ++k) {
                four[k / 4 * width * 4 + k % 4] = row[k];
                sum += row[k];
            }
            sums[at] = sum;
            scales[at] = scale[gate * rows + n];
        }
}
