// LAYER_NORM, RMS_NORM and SOFTMAX over the channels of a pixel. Sums are taken in 64 parts (channel modulo 64), which are then
// added in pairs, 32 apart first: the same order whatever the width of a vector is.
#include <float.h>
#include <math.h>

#include <new>

#include "finish.h"
#include "rows.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t LEAST = 4096;  // elements of a task
constexpr int64_t PARTS = 64;
constexpr float LOWEST = -FLT_MAX;  // of a maximum, so that a pixel of -inf only gives zeros
constexpr int64_t VECTORS = PARTS / LANES;

int64_t padded(int64_t channels) { return (channels + PARTS - 1) / PARTS * PARTS; }

// Combines the parts in pairs: vectors while whole vectors are left, then their elements.
template <class Pair, class PairOfVectors>
float folded(F (&parts)[VECTORS], const Pair& pair, const PairOfVectors& vectors) {
    for (int64_t half = VECTORS / 2; half > 0; half /= 2)
        for (int64_t k = 0; k < half; ++k) parts[k] = vectors(parts[k], parts[k + half]);
    alignas(64) float all[LANES];
    store(all, parts[0]);
    for (int64_t half = LANES / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) all[i] = pair(all[i], all[i + half]);
    return all[0];
}

float sum_of(F (&parts)[VECTORS]) {
    return folded(parts, [](float a, float b) { return a + b; }, [](F a, F b) { return add(a, b); });
}

// Combines `count` padded values part by part.
template <class Combine>
void collect(const float* values, int64_t count, F (&parts)[VECTORS], const Combine& combine) {
    for (int64_t c = 0; c < count; c += PARTS)
        for (int64_t k = 0; k < VECTORS; ++k) parts[k] = combine(parts[k], load(values + c + k * LANES));
}

// The same after replacing them by each(value).
template <class Each, class Combine>
void collect(float* values, int64_t count, F (&parts)[VECTORS], const Each& each, const Combine& combine) {
    for (int64_t c = 0; c < count; c += PARTS) {
        for (int64_t k = 0; k < VECTORS; ++k) {
            const F v = each(load(values + c + k * LANES));
            store(values + c + k * LANES, v);
            parts[k] = combine(parts[k], v);
        }
    }
}

void start(F (&parts)[VECTORS], float value) {
    for (F& part : parts) part = set(value);
}

// Writes the real values of a pixel, padded.
void stage(const Tensor& x, const uint8_t* from, F zero, F scale, float pad, float* real) {
    const Finish finish(false, 1.0f, Codes(0, 0, 255));
    if (x.type == FXQ_U8)
        finish(CodeSource{from, zero, scale}, reinterpret_cast<uint8_t*>(real), x.channels);
    else
        memcpy(real, from, static_cast<size_t>(x.channels) * 4);
    for (int64_t c = x.channels; c < padded(x.channels); ++c) real[c] = pad;
}

struct NormState final : State {
    Buffer weight, bias;
};

const char* prepare_norm(Operation& op) {
    NormState* state = new (std::nothrow) NormState;
    op.state = state;
    if (!state) return "no memory";
    const int64_t channels = op.output->channels;
    state->scratch_bytes = padded(channels) * 4;
    state->packed_bytes = 2 * channels * 4;
    if (!state->weight.copy(op.constant[0].data, channels * 4)) return "no memory";
    const bool made = op.constant[1].data ? state->bias.copy(op.constant[1].data, channels * 4)
                                          : state->bias.allocate(channels * 4);
    return made ? nullptr : "no memory";
}

const char* prepare_softmax(Operation& op) {
    op.state = new (std::nothrow) State;
    if (!op.state) return "no memory";
    op.state->scratch_bytes = padded(op.output->channels) * 4;
    return nullptr;
}

// d / deviation * weight + bias
struct NormSource {
    const float *difference, *weight, *bias;
    F factor;
    F full(int64_t i) const { return fma(mul(load(difference + i), factor), load(weight + i), load(bias + i)); }
    F part(int64_t i, int64_t n) const {
        return fma(mul(load_partial(difference + i, n), factor), load_partial(weight + i, n),
                   load_partial(bias + i, n));
    }
};

// x / root * weight
struct RootSource {
    const float *value, *weight;
    F factor;
    F full(int64_t i) const { return mul(mul(load(value + i), factor), load(weight + i)); }
    F part(int64_t i, int64_t n) const {
        return mul(mul(load_partial(value + i, n), factor), load_partial(weight + i, n));
    }
};

void norm_pixel(const Operation& op, float* real, int64_t channels, const Finish& finish, uint8_t* out) {
    const NormState& state = *static_cast<const NormState*>(op.state);
    const int64_t count = padded(channels);
    auto added = [](F part, F v) { return add(part, v); };
    F parts[VECTORS];
    start(parts, 0.0f);
    collect(real, count, parts, added);
    const float mean = sum_of(parts) / static_cast<float>(channels);
    for (int64_t c = channels; c < count; ++c) real[c] = mean;  // a difference of zero
    start(parts, 0.0f);
    const F shift = set(mean);
    collect(real, count, parts, [&](F v) { return sub(v, shift); }, [](F part, F v) { return fma(v, v, part); });
    const float variance = sum_of(parts) / static_cast<float>(channels);
    const float factor = 1.0f / ::sqrtf(variance + op.record.floats[0]);
    finish(NormSource{real, state.weight.as<float>(), state.bias.as<float>(), set(factor)}, out, channels);
}

void root_pixel(const Operation& op, const float* real, int64_t channels, const Finish& finish, uint8_t* out) {
    const NormState& state = *static_cast<const NormState*>(op.state);
    F parts[VECTORS];
    start(parts, 0.0f);
    collect(real, padded(channels), parts, [](F part, F v) { return fma(v, v, part); });
    const float factor = 1.0f / ::sqrtf(sum_of(parts) / static_cast<float>(channels) + op.record.floats[0]);
    finish(RootSource{real, state.weight.as<float>(), set(factor)}, out, channels);
}

void softmax_pixel(float* real, int64_t channels, const Finish& finish, uint8_t* out) {
    const int64_t count = padded(channels);
    F parts[VECTORS];
    start(parts, LOWEST);
    collect(real, count, parts, [](F part, F v) { return maximum(v, part); });
    const F most = set(folded(parts, [](float a, float b) { return a > b ? a : b; },
                              [](F a, F b) { return maximum(a, b); }));
    start(parts, 0.0f);
    collect(real, count, parts, [&](F v) { return exponential(sub(v, most)); }, [](F part, F v) { return add(part, v); });
    const float sum = sum_of(parts);
    finish(ScaledSource{{real}, {set(sum > 0.0f ? 1.0f / sum : 0.0f)}}, out, channels);
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const Tensor& y = *op.output;
    return split(images * y.height * y.width, y.channels, LEAST, threads);
}

template <class Pixel>
void each_pixel(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end, float scale,
                float pad, const Pixel& pixel) {
    const Tensor &x = *op.input[0], &y = *op.output;
    const F zero = set(static_cast<float>(op.record.ints[14])), factor = set(scale);
    float* real = reinterpret_cast<float*>(context.scratch);
    each_row(context.images, int64_t(y.height) * y.width, tasks, begin, end, [&](int64_t n, int64_t place) {
        const int64_t row = place / y.width, column = place % y.width;
        uint8_t* image = address(context, y, n);
        stage(x, address(context, x, n) + row * x.row_pitch + column * x.pixel_pitch, zero, factor, pad, real);
        pixel(real, image + row * y.row_pitch + column * y.pixel_pitch);
        if (column == 0) write_halo(y, image, row, row + 1);
    });
}

void layer_norm(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const int64_t channels = op.output->channels;
    const Finish finish(op.output->type == FXQ_U8, op.record.floats[2], codes_for(op.record, *op.output));
    each_pixel(op, context, tasks, begin, end, op.record.floats[1], 0.0f,
               [&](float* real, uint8_t* out) { norm_pixel(op, real, channels, finish, out); });
}

void rms_norm(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const int64_t channels = op.output->channels;
    const Finish finish(op.output->type == FXQ_U8, op.record.floats[2], codes_for(op.record, *op.output));
    each_pixel(op, context, tasks, begin, end, op.record.floats[1], 0.0f,
               [&](float* real, uint8_t* out) { root_pixel(op, real, channels, finish, out); });
}

void softmax(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const int64_t channels = op.output->channels;
    const Finish finish(op.output->type == FXQ_U8, op.record.floats[2], codes_for(op.record, *op.output));
    each_pixel(op, context, tasks, begin, end, op.record.floats[0], -INFINITY,
               [&](float* real, uint8_t* out) { softmax_pixel(real, channels, finish, out); });
}

}  // namespace

extern const Kernel layer_norm_kernel = {prepare_norm, tasks, layer_norm};
extern const Kernel rms_norm_kernel = {prepare_norm, tasks, rms_norm};
extern const Kernel softmax_kernel = {prepare_softmax, tasks, softmax};

}  // namespace FXQ_NS
}  // namespace fxq
