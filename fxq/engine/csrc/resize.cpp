// RESIZE: nearest copies pixels, bilinear mixes four; which ones stands in tables.
#include <new>

#include "bytes.h"
#include "finish.h"
#include "rows.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t LEAST = 16384;  // bytes of a task

// A row (column) of the input, the one after it, and the weight of that.
struct Line {
    int32_t first, next;
    float weight;
};

struct ResizeState final : State {
    Buffer rows, columns;
};

bool lines_of(Buffer* lines, const uint8_t* table, int64_t count, int64_t extent, bool bilinear) {
    if (!lines->allocate(count * static_cast<int64_t>(sizeof(Line)))) return false;
    for (int64_t i = 0; i < count; ++i) {
        Line& line = lines->as<Line>()[i];
        memcpy(&line.first, table + i * (bilinear ? 8 : 4), 4);
        if (bilinear) memcpy(&line.weight, table + i * 8 + 4, 4);
        line.next = line.first + 1 < extent ? line.first + 1 : line.first;
    }
    return true;
}

const char* prepare(Operation& op) {
    ResizeState* state = new (std::nothrow) ResizeState;
    op.state = state;
    if (!state) return "no memory";
    const Tensor &x = *op.input[0], &y = *op.output;
    const bool bilinear = op.record.ints[0] == 1;
    return lines_of(&state->rows, op.constant[0].as<uint8_t>(), y.height, x.height, bilinear) &&
                   lines_of(&state->columns, op.constant[1].as<uint8_t>(), y.width, x.width, bilinear)
               ? nullptr
               : "no memory";
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const int64_t cost = op.record.ints[0] == 1 ? 4 : 1;
    return split(images * op.output->height, cost * op.output->width * op.output->channels, LEAST, threads);
}

// fma(wy, lower - upper, upper) of upper, lower = fma(wx, right - left, left); codes: (.. - zero) * scale.
template <bool codes>
struct BilinearSource {
    const uint8_t *upper_left, *upper_right, *lower_left, *lower_right;
    F wx, wy, zero, scale;

    template <class Read>
    F mixed(const Read& read) const {
        const F a = read(upper_left), b = read(upper_right), c = read(lower_left), d = read(lower_right);
        const F upper = fma(wx, sub(b, a), a), lower = fma(wx, sub(d, c), c);
        const F v = fma(wy, sub(lower, upper), upper);
        return codes ? mul(sub(v, zero), scale) : v;
    }
    F full(int64_t i) const {
        return mixed([&](const uint8_t* p) {
            return codes ? to_float(bytes(p + i)) : load(reinterpret_cast<const float*>(p) + i);
        });
    }
    F part(int64_t i, int64_t n) const {
        return mixed([&](const uint8_t* p) {
            return codes ? to_float(bytes_partial(p + i, n)) : load_partial(reinterpret_cast<const float*>(p) + i, n);
        });
    }
};

template <bool codes>
void bilinear_row(const fxq_operation& record, const Tensor& x, const uint8_t* image, const Line& row,
                  const Line* columns, const Tensor& y, uint8_t* to) {
    const Finish finish(y.type == FXQ_U8, record.floats[2], codes_for(record, y));
    const F zero = set(static_cast<float>(record.ints[14])), scale = set(record.floats[0]), wy = set(row.weight);
    const uint8_t *upper = image + row.first * x.row_pitch, *lower = image + row.next * x.row_pitch;
    auto source = [&](int64_t i) {
        const int64_t left = columns[i].first * x.pixel_pitch, right = columns[i].next * x.pixel_pitch;
        return BilinearSource<codes>{upper + left, upper + right,          lower + left, lower + right,
                                     set(columns[i].weight), wy, zero, scale};
    };
    finish.pixels(source, to, y.pixel_pitch, y.width, y.channels);
}

void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const ResizeState& state = *static_cast<const ResizeState*>(op.state);
    const Tensor &x = *op.input[0], &y = *op.output;
    const Line* columns = state.columns.as<Line>();
    each_row(context.images, y.height, tasks, begin, end, [&](int64_t n, int64_t row) {
        const Line& line = state.rows.as<Line>()[row];
        const uint8_t* in = address(context, x, n);
        uint8_t *image = address(context, y, n), *to = image + row * y.row_pitch;
        if (op.record.ints[0] == 0) {
            const uint8_t* from = in + line.first * x.row_pitch;
            for (int64_t i = 0; i < y.width; ++i)
                copy_bytes(to + i * y.pixel_pitch, from + columns[i].first * x.pixel_pitch, y.channels * y.size);
        } else if (x.type == FXQ_U8) {
            bilinear_row<true>(op.record, x, in, line, columns, y, to);
        } else {
            bilinear_row<false>(op.record, x, in, line, columns, y, to);
        }
        write_halo(y, image, row, row + 1);
    });
}

}  // namespace

extern const Kernel resize_kernel = {prepare, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
