// Operations of two values that broadcast against each other: ADD, MUL, ADD_F32.
#include <math.h>

#include <new>

#include "finish.h"
#include "gating.h"
#include "rows.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t LEAST = 8192;  // elements of a task

// How one operand lies: a value of the program or, without one, constant 0. Broadcast dimensions have pitch 0.
struct Operand {
    int64_t row = 0;
    Pitches at{0, 0, 4};
    bool same_pixels = false;    // along a row, of more than one pixel
    bool same_channels = false;  // along a pixel, of more than one channel
};

struct BinaryState final : State {
    Operand operand[2];
    Buffer constant;
    float zero = 0.0f;  // what an absent operand reads
};

// What a row of the output needs of one operand.
struct Side {
    const uint8_t* row;
    const Operand* operand;
    bool codes;
    float zero, scale;

    const uint8_t* pixel(int64_t x) const { return row + x * operand->at.pixel; }
    float real(const uint8_t* element) const {
        if (codes) return (static_cast<float>(*element) - zero) * scale;
        float v;
        memcpy(&v, element, sizeof v);
        return v;
    }
};

// Operands as sources, one a pixel.
struct CodesAt {
    const Side& side;
    CodeSource at(int64_t x) const { return {side.pixel(x), set(side.zero), set(side.scale)}; }
};

struct RealsAt {
    const Side& side;
    RealSource at(int64_t x) const { return {reinterpret_cast<const float*>(side.pixel(x))}; }
};

struct StagedAt {
    const float* real;
    RealSource at(int64_t) const { return {real}; }
};

struct SameAt {
    const Side& side;
    SameSource at(int64_t x) const { return {set(side.real(side.pixel(x)))}; }
};

Side side_of(const Operation& op, const Context& context, int index, int64_t n, int64_t y) {
    const BinaryState& state = *static_cast<const BinaryState*>(op.state);
    const Operand& operand = state.operand[index];
    const uint8_t* image;
    if (op.input[index])
        image = address(context, *op.input[index], n);
    else if (index == 1 && state.constant.bytes())
        image = state.constant.as<const uint8_t>();
    else
        image = reinterpret_cast<const uint8_t*>(&state.zero);
    return {image + y * operand.row, &operand, operand.at.size == 1, static_cast<float>(op.record.ints[14 + index]),
            op.record.floats[index]};
}

int64_t padded(int64_t channels) { return (channels + 63) / 64 * 64; }

// The real values of one pixel.
void stage(const Side& side, int64_t x, float* real, int64_t channels) {
    const uint8_t* pixel = side.pixel(x);
    if (side.codes && dense_channels(side.operand->at, channels)) {
        const CodeSource source{pixel, set(side.zero), set(side.scale)};
        const int64_t whole = channels / LANES * LANES;
        for (int64_t c = 0; c < whole; c += LANES) store(real + c, source.full(c));
        if (whole < channels) store_partial(real + whole, source.part(whole, channels - whole), channels - whole);
        return;
    }
    for (int64_t c = 0; c < channels; ++c) real[c] = side.real(pixel + c * side.operand->at.channel);
}

// Calls body with the operand as sources. `real` is room for one pixel.
template <class Body>
void with_operand(const Side& side, int64_t channels, float* real, const Body& body) {
    if (side.operand->same_channels) return body(SameAt{side});
    if (side.operand->same_pixels) {
        stage(side, 0, real, channels);
        return body(StagedAt{real});
    }
    if (side.codes) return body(CodesAt{side});
    return body(RealsAt{side});
}

template <bool product, class A, class B>
auto combine(const A& a, const B& b) {
    if constexpr (product)
        return ProductSource<A, B>{a, b};
    else
        return SumSource<A, B>{a, b};
}

// Elements that do not lie side by side: staged pixel by pixel.
template <bool product>
void scattered_row(const Side& a, const Side& b, const Finish& finish, const Tensor& y, uint8_t* to, float* scratch) {
    const int64_t room = padded(y.channels);
    uint8_t* out = reinterpret_cast<uint8_t*>(scratch + 2 * room);
    for (int64_t i = 0; i < y.width; ++i) {
        stage(a, i, scratch, y.channels);
        stage(b, i, scratch + room, y.channels);
        finish(combine<product>(RealSource{scratch}, RealSource{scratch + room}), out, y.channels);
        scatter(to + i * y.pixel_pitch, y.channel_pitch, out, y.size, y.channels);
    }
}

template <bool product>
void row_of(const Side& a, const Side& b, const Finish& finish, const Tensor& y, uint8_t* to, float* scratch) {
    int64_t width = y.width, channels = y.channels;
    auto lies = [&](const Side& s) { return s.operand->same_channels || dense_channels(s.operand->at, channels); };
    if (!lies(a) || !lies(b) || !dense_channels(pitches(y), channels))
        return scattered_row<product>(a, b, finish, y, to, scratch);
    auto whole = [&](const Side& s) {
        return !s.operand->same_channels && !s.operand->same_pixels && dense_row(s.operand->at, width, channels);
    };
    if (whole(a) && whole(b) && dense_row(pitches(y), width, channels)) {
        channels *= width;
        width = 1;
    }
    with_operand(a, channels, scratch, [&](const auto& left) {
        with_operand(b, channels, scratch + padded(y.channels), [&](const auto& right) {
            finish.pixels([&](int64_t i) { return combine<product>(left.at(i), right.at(i)); }, to, y.pixel_pitch, width,
                          channels);
        });
    });
}

Operand operand_of(const Tensor& y, int64_t height, int64_t width, int64_t channels, int64_t row, Pitches at) {
    Operand operand;
    operand.same_pixels = width == 1 && y.width > 1;
    operand.same_channels = channels == 1 && y.channels > 1;
    operand.row = height == 1 ? 0 : row;
    operand.at = {width == 1 ? 0 : at.pixel, channels == 1 ? 0 : at.channel, at.size};
    return operand;
}

const char* prepare(Operation& op) {
#if !defined(FXQ_PORTABLE)
    if (State* own = gating_state(op)) {
        op.state = own;
        op.kernel = &gating_kernel;
        return nullptr;
    }
#endif
    BinaryState* state = new (std::nothrow) BinaryState;
    op.state = state;
    if (!state) return "no memory";
    const Tensor& y = *op.output;
    for (int i = 0; i < 2; ++i) {
        state->operand[i] = operand_of(y, 1, 1, 1, 0, {0, 0, 4});
        if (const Tensor* x = op.input[i])
            state->operand[i] = operand_of(y, x->height, x->width, x->channels, x->row_pitch, pitches(*x));
    }
    state->scratch_bytes = 3 * padded(y.channels) * 4;
    if (op.input[1] || !op.constant[0].data) return nullptr;
    const int64_t height = op.record.ints[0], width = op.record.ints[1], channels = op.record.ints[2];
    state->operand[1] = operand_of(y, height, width, channels, width * channels * 4, {channels * 4, 4, 4});
    state->packed_bytes = op.constant[0].bytes;
    return state->constant.copy(op.constant[0].data, op.constant[0].bytes) ? nullptr : "no memory";
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const int64_t cost = op.record.ints[9] == FXQ_IDENTITY ? 1 : 4;
    return split(images * op.output->height, cost * op.output->width * op.output->channels, LEAST, threads);
}

// Whether the scaled result of two codes stays far inside of s32, whatever the codes.
bool codes_bounded(const Operation& op, bool product) {
    if (!op.input[0] || !op.input[1] || op.input[0]->type != FXQ_U8 || op.input[1]->type != FXQ_U8) return false;
    const float* floats = op.record.floats;
    const double a = 255.0 * fabs(floats[0]), b = 255.0 * fabs(floats[1]);
    return op.record.ints[9] == FXQ_IDENTITY && (product ? a * b : a + b) * fabs(floats[2]) < 1073741824.0;
}

template <bool product>
void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const Tensor& y = *op.output;
    const Finish finish(op.record, y, codes_bounded(op, product));
    each_row(context.images, y.height, tasks, begin, end, [&](int64_t n, int64_t row) {
        uint8_t* image = address(context, y, n);
        row_of<product>(side_of(op, context, 0, n, row), side_of(op, context, 1, n, row), finish, y,
                        image + row * y.row_pitch, reinterpret_cast<float*>(context.scratch));
        write_halo(y, image, row, row + 1);
    });
}

}  // namespace

extern const Kernel add_kernel = {prepare, tasks, run<false>};
extern const Kernel mul_kernel = {prepare, tasks, run<true>};

}  // namespace FXQ_NS
}  // namespace fxq
