// Layers on s8 weights that quantise what they read, for CPUs with AVX512-VNNI: linear layers, and the steps of LSTM,
// GRU and RNN layers, a whole sequence in one call.
//
// The arithmetic is that of fxq/nn/dynamic.py and fxq/nn/recurrent_steps.py with a scale for each row ("token"): every
// row is quantised to round(x / s), s = max|x| / 127, and multiplied by the weights in exact integers; the rest is
// computed in float32.
// Weights are packed in strips of 64 outputs along the inputs, 4 inputs after 4: the product reads one stream, and one
// 64-byte load feeds one dot-product instruction.

#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define FXQ_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))
#define FXQ_INLINE FXQ_TARGET static inline __attribute__((always_inline))
#endif

#define FXQ_EXPORT extern "C" __attribute__((visibility("default")))

namespace {
enum Kind { LSTM = 0, GRU = 1, RNN_TANH = 2, RNN_RELU = 3 };
constexpr int LANES = 16;   // floats of a vector, and outputs of a block of weights
constexpr int ROWS = 4;     // rows that a tile of the product has; of many rows twice as many, with half the blocks
constexpr int BLOCKS = 4;   // blocks that it has, as many as a strip of weights
constexpr int STRIP = BLOCKS * LANES;
constexpr int CHUNK = 128;  // rows of a linear layer whose codes stay in the cache while the weights pass by

int64_t padded(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// The outputs of all gates: each gate padded to whole blocks, all together to whole strips.
int64_t outputs(int64_t gates, int64_t rows) { return padded(gates * padded(rows, LANES), STRIP); }
}  // namespace

// One layer and direction. Gates come in the order i, f, o, g for LSTM, and r, z, n for GRU.
struct FxqRecurrent {
    int32_t kind;
    int32_t gates;
    int64_t hidden;
    const int8_t* weight;      // packed, see fxq_dynamic_pack
    const int32_t* offset;     // 128 * the sum of each row of the weight, [gate][padded hidden]
    const float* scale;        // of each row, [gate][padded hidden]
    const float* bias;         // of GRU's new gate, (hidden,), or null
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
    float* h;                  // (batch, hidden), read and written
    float* c;                  // the same for LSTM
    int32_t backwards;
};

// A linear layer.
struct FxqLinear {
    int64_t inputs;
    int64_t outputs;
    const int8_t* weight;      // packed with one gate
    const int32_t* offset;     // (padded outputs,)
    const float* scale;        // (padded outputs,)
    const float* bias;         // (outputs,), or null
};

FXQ_EXPORT int fxq_dynamic_version() { return 2; }

FXQ_EXPORT int64_t fxq_dynamic_packed_bytes(int64_t gates, int64_t rows, int64_t inputs) {
    return outputs(gates, rows) * padded(inputs, 4);
}

// weight: (gates x rows, inputs) s8; packed: zeroed memory of the size above; offset: (gates x padded rows), zeroed.
FXQ_EXPORT void fxq_dynamic_pack(const int8_t* weight, int64_t gates, int64_t rows, int64_t inputs, int8_t* packed,
                                 int32_t* offset) {
    const int64_t width = padded(rows, LANES), depth = padded(inputs, 4);
    for (int64_t g = 0; g < gates; ++g)
        for (int64_t n = 0; n < rows; ++n) {
            const int8_t* row = weight + (g * rows + n) * inputs;
            const int64_t at = g * width + n;
            int8_t* four = packed + at / STRIP * STRIP * depth + at % STRIP * 4;
            int32_t sum = 0;
            for (int64_t k = 0; k < inputs; ++k) {
                four[k / 4 * STRIP * 4 + k % 4] = row[k];
                sum += row[k];
            }
            offset[at] = 128 * sum;
        }
}

#if defined(__x86_64__)
namespace {

FXQ_INLINE __mmask16 mask_of(int64_t left) {
    return left >= LANES ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << left) - 1);
}

// exp as in Cephes: 2^n times a polynomial of degree 6; NaN stays NaN.
FXQ_INLINE __m512 exp_of(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-87.3f), _mm512_min_ps(_mm512_set1_ps(88.0f), x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

FXQ_INLINE __m512 sigmoid_of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp_of(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// (1 - e) / (1 + e) with e = exp(-2|x|); near 0, where 1 - e cancels, the series.
FXQ_INLINE __m512 tanh_of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), a = _mm512_abs_ps(x), s = _mm512_mul_ps(x, x);
    const __m512 e = exp_of(_mm512_mul_ps(a, _mm512_set1_ps(-2.0f)));
    const __m512 far = _mm512_div_ps(_mm512_sub_ps(one, e), _mm512_add_ps(one, e));
    const __m512 sign = _mm512_and_ps(x, _mm512_set1_ps(-0.0f));
    __m512 p = _mm512_set1_ps(62.0f / 2835.0f);
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-17.0f / 315.0f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(2.0f / 15.0f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-1.0f / 3.0f));
    const __m512 near = _mm512_fmadd_ps(_mm512_mul_ps(p, s), x, x);
    const __mmask16 small = _mm512_cmp_ps_mask(a, _mm512_set1_ps(0.25f), _CMP_LT_OQ);
    return _mm512_mask_blend_ps(small, _mm512_or_ps(far, sign), near);
}

// The codes of one state plus 128, and its scale; a state with NaN or an infinity has the scale NaN.
FXQ_TARGET float quantise(const float* h, int64_t hidden, uint8_t* codes) {
    __m512 largest = _mm512_set1_ps(7.888609052210118e-31f), odd = _mm512_setzero_ps();  // 2**-100
    for (int64_t k = 0; k < hidden; k += LANES) {
        const __m512 x = _mm512_maskz_loadu_ps(mask_of(hidden - k), h + k);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(x));
        odd = _mm512_fmadd_ps(x, _mm512_setzero_ps(), odd);
    }
    const float scale = _mm512_reduce_max_ps(largest) / 127.0f + _mm512_reduce_add_ps(odd);
    const __m512 divisor = _mm512_set1_ps(scale);
    for (int64_t k = 0; k < hidden; k += LANES) {
        const __mmask16 mask = mask_of(hidden - k);
        const __m512 x = _mm512_maskz_loadu_ps(mask, h + k);
        const __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_div_ps(x, divisor)), _mm512_set1_epi32(128));
        _mm512_mask_cvtepi32_storeu_epi8(codes + k, mask, q);
    }
    return scale;
}

// sums[row] = codes[row] . weights, for R rows and B blocks, of one strip or several.
template <int R, int B>
FXQ_TARGET void tile(const uint8_t* codes, int64_t depth, const int8_t* weight, int32_t* sums, int64_t width) {
    __m512i acc[R][B];
    for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) acc[r][b] = _mm512_setzero_si512();
    for (int64_t k = 0; k < depth; k += 4) {
        __m512i w[B];
        for (int b = 0; b < B; ++b)
            w[b] = _mm512_loadu_si512(weight + b / BLOCKS * STRIP * depth + k * STRIP + b % BLOCKS * LANES * 4);
        for (int r = 0; r < R; ++r) {
            int32_t four;
            std::memcpy(&four, codes + r * depth + k, 4);
            const __m512i x = _mm512_set1_epi32(four);
            for (int b = 0; b < B; ++b) acc[r][b] = _mm512_dpbusd_epi32(acc[r][b], x, w[b]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) _mm512_storeu_si512(sums + r * width + b * LANES, acc[r][b]);
}

// sums = codes . weights for all rows and strips; a strip is used for all rows before the next is read.
FXQ_TARGET void product(const uint8_t* codes, int64_t rows, int64_t depth, const int8_t* weight, int32_t* sums,
                        int64_t width, int64_t strips) {
    int64_t n = 0;
    if (rows == 1)  // one row alone needs more sums in flight
        for (; n + 2 <= strips; n += 2)
            tile<1, 2 * BLOCKS>(codes, depth, weight + n * STRIP * depth, sums + n * STRIP, width);
    for (; n < strips; ++n) {
        const int8_t* strip = weight + n * STRIP * depth;
        int32_t* at = sums + n * STRIP;
        int64_t r = 0;
        for (; r + 2 * ROWS <= rows; r += 2 * ROWS)
            for (int b = 0; b < BLOCKS; b += 2)
                tile<2 * ROWS, 2>(codes + r * depth, depth, strip + b * LANES * 4, at + r * width + b * LANES, width);
        for (; r + ROWS <= rows; r += ROWS) tile<ROWS, BLOCKS>(codes + r * depth, depth, strip, at + r * width, width);
        for (; r + 2 <= rows; r += 2) tile<2, BLOCKS>(codes + r * depth, depth, strip, at + r * width, width);
        for (; r < rows; ++r) tile<1, BLOCKS>(codes + r * depth, depth, strip, at + r * width, width);
    }
}

// The rows of one strip after another, each written as soon as its sums are there.
FXQ_TARGET void linear(const FxqLinear& layer, const float* x, int64_t rows, int64_t row, float* out) {
    const int64_t depth = padded(layer.inputs, 4), width = STRIP * (rows == 1 ? 2 : 1);
    std::vector<uint8_t> codes(rows * depth, 0);
    std::vector<int32_t> sums(rows * width);
    std::vector<float> scales(rows);
    for (int64_t r = 0; r < rows; ++r) scales[r] = quantise(x + r * row, layer.inputs, codes.data() + r * depth);
    for (int64_t n = 0; n < layer.outputs; n += width) {
        const int64_t strips = (padded(layer.outputs - n < width ? layer.outputs - n : width, STRIP)) / STRIP;
        product(codes.data(), rows, depth, layer.weight + n * depth, sums.data(), width, strips);
        for (int64_t b = n; b < n + width && b < layer.outputs; b += LANES) {
            const __mmask16 mask = mask_of(layer.outputs - b);
            const __m512i offset = _mm512_loadu_si512(layer.offset + b);
            const __m512 scale = _mm512_loadu_ps(layer.scale + b);
            __m512 bias = _mm512_setzero_ps();
            if (layer.bias != nullptr) bias = _mm512_maskz_loadu_ps(mask, layer.bias + b);
            for (int64_t r = 0; r < rows; ++r) {
                const __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(sums.data() + r * width + b - n), offset);
                const __m512 real = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
                const __m512 y = _mm512_fmadd_ps(real, _mm512_set1_ps(scales[r]), bias);
                _mm512_mask_storeu_ps(out + r * layer.outputs + b, mask, y);
            }
        }
    }
}

// W h at 16 places of one gate: (sum - offset) * scale of the row * scale of the state.
FXQ_INLINE __m512 real_of(const FxqRecurrent& layer, const int32_t* sums, int64_t at, __m512 scale) {
    const __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(sums + at), _mm512_loadu_si512(layer.offset + at));
    return _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(layer.scale + at)), scale);
}

// The new state of one sequence; `a` are the gates' shares of the input.
FXQ_TARGET void finish(const FxqRecurrent& layer, const float* a, const int32_t* sums, float scale, float* h, float* c,
                       float* out) {
    const int64_t hidden = layer.hidden, width = padded(hidden, LANES);
    const __m512 s = _mm512_set1_ps(scale);
    for (int64_t k = 0; k < hidden; k += LANES) {
        const __mmask16 mask = mask_of(hidden - k);
        const auto gate = [&](int g) __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma"))) {
            const __m512 input = _mm512_maskz_loadu_ps(mask, a + g * hidden + k);
            return _mm512_add_ps(input, real_of(layer, sums, g * width + k, s));
        };
        __m512 y;
        if (layer.kind == LSTM) {
            const __m512 i = sigmoid_of(gate(0)), f = sigmoid_of(gate(1)), o = sigmoid_of(gate(2));
            const __m512 n = tanh_of(gate(3));
            const __m512 cell = _mm512_fmadd_ps(i, n, _mm512_mul_ps(f, _mm512_maskz_loadu_ps(mask, c + k)));
            _mm512_mask_storeu_ps(c + k, mask, cell);
            y = _mm512_mul_ps(o, tanh_of(cell));
        } else if (layer.kind == GRU) {
            const __m512 r = sigmoid_of(gate(0)), z = sigmoid_of(gate(1));
            __m512 w = real_of(layer, sums, 2 * width + k, s);
            if (layer.bias != nullptr) w = _mm512_add_ps(w, _mm512_maskz_loadu_ps(mask, layer.bias + k));
            const __m512 n = tanh_of(_mm512_fmadd_ps(r, w, _mm512_maskz_loadu_ps(mask, a + 2 * hidden + k)));
            y = _mm512_fmadd_ps(z, _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, h + k), n), n);
        } else {
            y = layer.kind == RNN_TANH ? tanh_of(gate(0)) : _mm512_max_ps(_mm512_setzero_ps(), gate(0));
        }
        _mm512_mask_storeu_ps(h + k, mask, y);
        _mm512_mask_storeu_ps(out + k, mask, y);
    }
}

}  // namespace

FXQ_EXPORT int fxq_dynamic_runs() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

// x: rows of `inputs` floats, `row` apart; out: (rows, outputs), contiguous.
FXQ_EXPORT void fxq_linear_run(const FxqLinear* layer, const float* x, int64_t rows, int64_t row, float* out) {
    for (int64_t r = 0; r < rows; r += CHUNK)
        linear(*layer, x + r * row, rows - r < CHUNK ? rows - r : CHUNK, row, out + r * layer->outputs);
}

FXQ_EXPORT void fxq_recurrent_run(const FxqRecurrent* layer, const FxqSequence* s) {
    const int64_t hidden = layer->hidden, depth = padded(hidden, 4), width = outputs(layer->gates, hidden);
    std::vector<uint8_t> codes(s->batch * depth, 0);
    std::vector<int32_t> sums(s->batch * width);
    std::vector<float> scales(s->batch);
    for (int64_t i = 0; i < s->steps; ++i) {
        const int64_t t = s->backwards ? s->steps - 1 - i : i;
        for (int64_t b = 0; b < s->batch; ++b)
            scales[b] = quantise(s->h + b * hidden, hidden, codes.data() + b * depth);
        product(codes.data(), s->batch, depth, layer->weight, sums.data(), width, width / STRIP);
        for (int64_t b = 0; b < s->batch; ++b)
            finish(*layer, s->gates + t * s->gates_step + b * s->gates_row, sums.data() + b * width, scales[b],
                   s->h + b * hidden, s->c == nullptr ? nullptr : s->c + b * hidden,
                   s->out + t * s->out_step + b * s->out_row);
    }
}
#else
FXQ_EXPORT int fxq_dynamic_runs() { return 0; }
FXQ_EXPORT void fxq_linear_run(const FxqLinear*, const float*, int64_t, int64_t, float*) {}
FXQ_EXPORT void fxq_recurrent_run(const FxqRecurrent*, const FxqSequence*) {}
#endif
