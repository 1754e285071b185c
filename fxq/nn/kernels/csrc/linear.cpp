// A linear layer. The threads share the rows where there are many, else the outputs: then each of them reads its part
// of the weights alone, and finds it in its own cache at the next call.

#include "dynamic.h"

#if defined(__x86_64__)
#include <memory>

#include "codes.h"
#include "product.h"
#include "team.h"

namespace fxq {
namespace {

constexpr int64_t CHUNK = 128;  // rows whose codes stay in the cache while the weights pass by
constexpr int64_t MANY = 32;    // rows for each thread that are worth all weights
// A thread more pays from this many products on.
constexpr int64_t PRODUCTS = int64_t(1) << 19;

class Linear final : public Work {
   public:
    Linear(const FxqLinear& layer, const float* x, int64_t rows, int64_t row, float* out, int threads)
        : layer_(layer), x_(x), rows_(rows), row_(row), out_(out), strips_(1, layer.weight.rows),
          depth_(depth_of(layer.weight.inputs)), by_rows_(rows >= MANY * threads || strips_.count < threads),
          codes_(new uint8_t[(by_rows_ ? CHUNK * threads : rows) * depth_]),
          maps_(new Map[by_rows_ ? CHUNK * threads : rows]), ranges_(new Range[threads]) {}

    void part(int number, int parts) override {
        if (layer_.scales != BY_ROW && !find_map(number, parts)) return;
        if (by_rows_) {
            uint8_t* const codes = codes_.get() + number * CHUNK * depth_;
            Map* const maps = maps_.get() + number * CHUNK;
            const Share own(rows_, number, parts);
            for (int64_t r = own.first; r < own.last; r += CHUNK) {
                const int64_t count = own.last - r < CHUNK ? own.last - r : CHUNK;
                quantise(x_ + r * row_, Share(count, 0, 1), count, codes, maps);
                multiply_strips(0, strips_.count, r, count, codes, maps);
            }
            return;
        }
        const Share own(rows_, number, parts), strips(strips_.count, number, parts);
        quantise(x_, own, rows_, codes_.get(), maps_.get());
        barrier_.wait(parts);
        for (int64_t r = 0; r < rows_; r += CHUNK)
            multiply_strips(strips.first, strips.last, r, rows_ - r < CHUNK ? rows_ - r : CHUNK,
                            codes_.get() + r * depth_, maps_.get() + r);
    }

    bool finite() const { return finite_; }

   private:
    // The map of all rows, from the ranges that the threads find; false where there is none.
    bool find_map(int number, int parts) {
        Range range;
        const Share own(rows_, number, parts);
        for (int64_t r = own.first; r < own.last; ++r) range.add(range_of(x_ + r * row_, layer_.weight.inputs));
        ranges_[number] = range;
        barrier_.wait(parts);
        range = Range();
        for (int p = 0; p < parts; ++p) range.add(ranges_[p]);
        if (layer_.scales == OF_RANGE && std::isnan(range.odd)) {
            if (number == 0) finite_ = false;
            return false;
        }
        const Map map = layer_.scales == OF_RANGE ? affine(range) : symmetric(range);
        if (number == 0) map_ = map;
        barrier_.wait(parts);
        return true;
    }

    // The codes of `own` of the `count` rows from `x` on.
    void quantise(const float* x, const Share& own, int64_t count, uint8_t* codes, Map* maps) const {
        const int64_t inputs = layer_.weight.inputs;
        for (int64_t r = own.first; r < own.last; ++r) {
            maps[r] = layer_.scales == BY_ROW ? symmetric(range_of(x + r * row_, inputs)) : map_;
            encode(x + r * row_, inputs, maps[r], codes, r, count);
        }
    }

    // `first` is the number of the first of `count` rows. A strip is used for all of them before the next is read.
    void multiply_strips(int64_t from, int64_t to, int64_t first, int64_t count, const uint8_t* codes,
                         const Map* maps) const {
        const int64_t width = strips_.width();
        alignas(64) int32_t sums[MOST_ROWS * MOST_BLOCKS * LANES];
        for (int64_t n = from; n < to; ++n)
            for (int64_t r = 0; r < count;) {
                const int64_t rows = Group::of(r, count).rows;
                const int8_t* const weight = layer_.weight.codes + n * width * depth_;
                multiply(codes + r * depth_, depth_, weight, strips_.blocks, rows, sums);
                for (int64_t i = 0; i < rows; ++i, ++r)
                    finish(n * width, sums + i * width, maps[r], out_ + (first + r) * layer_.weight.rows);
            }
    }

    // One row's outputs from `at` on, of one strip.
    FXQ_TARGET void finish(int64_t at, const int32_t* sums, const Map& map, float* out) const {
        const int64_t left = layer_.weight.rows - at, end = left < strips_.width() ? left : strips_.width();
        for (int64_t b = 0; b < end; b += LANES) {
            const __mmask16 mask = mask_of(end - b);
            __m512 bias = _mm512_setzero_ps();
            if (layer_.bias != nullptr) bias = _mm512_maskz_loadu_ps(mask, layer_.bias + at + b);
            const __m512 real = scaled(layer_.weight, at + b, sums + b, map.zero);
            _mm512_mask_storeu_ps(out + at + b, mask, _mm512_fmadd_ps(real, _mm512_set1_ps(map.scale), bias));
        }
    }

    const FxqLinear& layer_;
    const float* const x_;
    const int64_t rows_, row_;
    float* const out_;
    const Strips strips_;
    const int64_t depth_;
    const bool by_rows_;
    const std::unique_ptr<uint8_t[]> codes_;
    const std::unique_ptr<Map[]> maps_;
    const std::unique_ptr<Range[]> ranges_;
    Map map_;
    bool finite_ = true;
};

}  // namespace
}  // namespace fxq

FXQ_EXPORT int fxq_linear_run(const FxqLinear* layer, const float* x, int64_t rows, int64_t row, float* out,
                              int threads) {
    const int64_t most = rows * layer->weight.rows * layer->weight.inputs / fxq::PRODUCTS + 1;
    threads = threads < most ? threads : static_cast<int>(most);
    fxq::Linear work(*layer, x, rows, row, out, threads);
    fxq::run_team(&work, threads);
    return !work.finite();
}
#else
FXQ_EXPORT int fxq_linear_run(const FxqLinear*, const float*, int64_t, int64_t, float*, int) { return 0; }
#endif
