// MAX_POOL and AVG_POOL: windows of rows and columns, clipped to the image when the program is created.
#include <new>

#include "bytes.h"
#include "finish.h"
#include "rows.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t LEAST = 32768;  // bytes of a task
constexpr int64_t WIDE = 64;      // channels that make up a piece

struct Window {
    int32_t first, count;  // taps inside of the image
};

struct PoolState final : State {
    Buffer rows, columns;
    int64_t row_step, column_step;  // between taps
    bool by_parts;                  // tasks are channels rather than rows
};

bool clipped(Buffer* windows, int64_t out, int64_t in, int64_t kernel, int64_t stride, int64_t dilation,
             int64_t padding) {
    if (!windows->allocate(out * static_cast<int64_t>(sizeof(Window)))) return false;
    for (int64_t i = 0; i < out; ++i) {
        int64_t first = i * stride - padding, last = first + (kernel - 1) * dilation;
        while (first < 0) first += dilation;
        while (last >= in) last -= dilation;
        windows->as<Window>()[i] = {static_cast<int32_t>(first), static_cast<int32_t>((last - first) / dilation + 1)};
    }
    return true;
}

// From pairs of first and end.
bool listed(Buffer* windows, int64_t out, const int32_t* pairs) {
    if (!windows->allocate(out * static_cast<int64_t>(sizeof(Window)))) return false;
    for (int64_t i = 0; i < out; ++i) windows->as<Window>()[i] = {pairs[2 * i], pairs[2 * i + 1] - pairs[2 * i]};
    return true;
}

const char* prepare(Operation& op) {
    PoolState* state = new (std::nothrow) PoolState;
    op.state = state;
    if (!state) return "no memory";
    const int32_t* ints = op.record.ints;
    const Tensor &x = *op.input[0], &y = *op.output;
    const bool adaptive = op.record.code == FXQ_AVG_POOL && ints[16];
    state->row_step = adaptive ? 1 : ints[4];
    state->column_step = adaptive ? 1 : ints[5];
    state->by_parts = y.height == 1 && y.width == 1;
    bool made;
    if (adaptive)
        made = listed(&state->rows, y.height, op.constant[0].as<int32_t>()) &&
               listed(&state->columns, y.width, op.constant[1].as<int32_t>());
    else
        made = clipped(&state->rows, y.height, x.height, ints[0], ints[2], ints[4], ints[6]) &&
               clipped(&state->columns, y.width, x.width, ints[1], ints[3], ints[5], ints[7]);
    return made ? nullptr : "no memory";
}

// Channels of a piece where the output is one pixel: one vector where they would be a single piece.
int64_t part_of(const Operation& op) { return op.output->channels <= WIDE ? 16 : WIDE; }

int64_t parts_of(const Operation& op) {
    const int64_t part = part_of(op);
    return static_cast<const PoolState*>(op.state)->by_parts ? (op.output->channels + part - 1) / part
                                                             : op.output->height;
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const Tensor& x = *op.input[0];
    const int64_t parts = parts_of(op), bytes = int64_t(x.height) * x.width * x.channels;
    return split(images * parts, 4 * bytes / parts + 1, LEAST, threads);
}

// The taps of one output pixel.
struct Taps {
    const uint8_t* first;
    int64_t rows, columns, row_bytes, column_bytes;

    template <class Body>
    void each(int64_t channel, const Body& body) const {
        const uint8_t* row = first + channel;
        for (int64_t i = 0; i < rows; ++i, row += row_bytes) {
            const uint8_t* tap = row;
            for (int64_t j = 0; j < columns; ++j, tap += column_bytes) body(tap);
        }
    }
};

// Calls pixel(taps, address of the output pixel, first channel, end channel).
template <class Pixel>
void each_pixel(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end,
                const Pixel& pixel) {
    const PoolState& state = *static_cast<const PoolState*>(op.state);
    const Tensor &x = *op.input[0], &y = *op.output;
    const int64_t row_bytes = state.row_step * x.row_pitch, column_bytes = state.column_step * x.pixel_pitch;
    const int64_t width = part_of(op);
    each_row(context.images, parts_of(op), tasks, begin, end, [&](int64_t n, int64_t part) {
        const int64_t row = state.by_parts ? 0 : part, from = state.by_parts ? part * width : 0;
        const int64_t to = state.by_parts && from + width < y.channels ? from + width : y.channels;
        const Window rows = state.rows.as<Window>()[row];
        const uint8_t* in = address(context, x, n) + rows.first * x.row_pitch;
        uint8_t* image = address(context, y, n);
        for (int64_t i = 0; i < y.width; ++i) {
            const Window columns = state.columns.as<Window>()[i];
            const Taps taps{in + columns.first * x.pixel_pitch, rows.count, columns.count, row_bytes, column_bytes};
            pixel(taps, image + row * y.row_pitch + i * y.pixel_pitch, from, to);
        }
        if (!state.by_parts || part == 0) write_halo(y, image, row, row + 1);
    });
}

void max_pool(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const B low = set_bytes(op.record.ints[11]), high = set_bytes(op.record.ints[12]);
    each_pixel(op, context, tasks, begin, end, [&](const Taps& taps, uint8_t* out, int64_t from, int64_t to) {
        int64_t c = from;
        for (; c + BYTES <= to; c += BYTES) {
            B best = low;
            taps.each(c, [&](const uint8_t* tap) { best = larger(best, load_bytes(tap)); });
            store_bytes(out + c, smaller(best, high));
        }
        if (c == to) return;
        B best = low;
        taps.each(c, [&](const uint8_t* tap) { best = larger(best, load_bytes(tap, to - c)); });
        store_bytes(out + c, smaller(best, high), to - c);
    });
}

// Sums of `vectors` vectors of channels, less the zero point once a tap.
template <int vectors>
void sums(const Taps& taps, int64_t channel, I less, I (&sum)[vectors]) {
    for (int k = 0; k < vectors; ++k) sum[k] = less;
    taps.each(channel, [&](const uint8_t* tap) {
        for (int k = 0; k < vectors; ++k) sum[k] = add(sum[k], bytes(tap + k * LANES));
    });
}

void average_pool(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const fxq_operation& record = op.record;
    const Codes codes = codes_of(record);
    const F inverse = set(record.floats[2]);
    each_pixel(op, context, tasks, begin, end, [&](const Taps& taps, uint8_t* out, int64_t from, int64_t to) {
        const int64_t count = taps.rows * taps.columns, divisor = record.ints[15] ? record.ints[15] : count;
        const F factor = set(record.floats[0] / static_cast<float>(divisor));
        const I less = set_int(static_cast<int32_t>(-count * record.ints[14]));
        auto result = [&](I sum) { return codes(mul(mul(to_float(sum), factor), inverse)); };
        int64_t c = from;
        for (; c + 4 * LANES <= to; c += 4 * LANES) {
            I sum[4];
            sums(taps, c, less, sum);
            for (int k = 0; k < 4; ++k) put_bytes(out + c + k * LANES, result(sum[k]));
        }
        for (; c + LANES <= to; c += LANES) {
            I sum[1];
            sums(taps, c, less, sum);
            put_bytes(out + c, result(sum[0]));
        }
        if (c == to) return;
        I sum = less;
        taps.each(c, [&](const uint8_t* tap) { sum = add(sum, bytes_partial(tap, to - c)); });
        put_bytes_partial(out + c, result(sum), to - c);
    });
}

// The mean of float32: taps are added row by row.
void average_reals(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    each_pixel(op, context, tasks, begin, end, [&](const Taps& taps, uint8_t* out, int64_t from, int64_t to) {
        const int32_t given = op.record.ints[15];
        const F divisor = set(static_cast<float>(given ? given : taps.rows * taps.columns));
        for (int64_t c = from; c < to; c += LANES) {
            const int64_t count = to - c < LANES ? to - c : LANES;
            F sum = set(0.0f);
            taps.each(4 * c, [&](const uint8_t* tap) {
                sum = add(sum, load_partial(reinterpret_cast<const float*>(tap), count));
            });
            store_partial(reinterpret_cast<float*>(out) + c, div(sum, divisor), count);
        }
    });
}

void average(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    if (op.output->type == FXQ_F32) return average_reals(op, context, tasks, begin, end);
    average_pool(op, context, tasks, begin, end);
}

}  // namespace

extern const Kernel max_pool_kernel = {prepare, tasks, max_pool};
extern const Kernel average_pool_kernel = {prepare, tasks, average};

}  // namespace FXQ_NS
}  // namespace fxq
