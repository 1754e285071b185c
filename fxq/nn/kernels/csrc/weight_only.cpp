// Few rows of floats by a large weight of s8 codes or of int4 codes in groups. Such a product takes as long as the
// weight takes to arrive, so it is read once, and each vector of it that is widened serves four rows. The threads share
// the outputs; each output is computed by one of them, in the same order whatever their number.

#include "weight_only.h"

#if defined(__x86_64__)
#include <memory>

#include "team.h"
#include "vectors.h"

namespace fxq {
namespace {

constexpr int BLOCKS = 4;                     // of 16 outputs, in a strip
constexpr int64_t WIDTH = BLOCKS * LANES;     // outputs of a strip
constexpr int MOST_ROWS = 4;                  // of a tile: 16 sums of 16 floats, which stay in registers
constexpr int64_t SECTION = 256;              // inputs that are summed before they join the total: less is rounded away
constexpr int64_t PRODUCTS = int64_t(1) << 19;  // A thread more pays from this many products on.

#define FXQ_UNROLL _Pragma("GCC unroll 8")

template <int R>
using Sums = __m512[R][BLOCKS];

template <int R>
FXQ_INLINE void add(Sums<R>& sums, const __m512 (&w)[BLOCKS], const float* x, int64_t row) {
    FXQ_UNROLL for (int r = 0; r < R; ++r) {
        const __m512 value = _mm512_set1_ps(x[r * row]);
        FXQ_UNROLL for (int b = 0; b < BLOCKS; ++b) sums[r][b] = _mm512_fmadd_ps(w[b], value, sums[r][b]);
    }
}

// A byte for each output of a strip, input after input.
struct Int8 {
    static constexpr int64_t bytes(int64_t inputs) { return inputs * WIDTH; }

    template <int R>
    FXQ_INLINE void section(Sums<R>& sums, const int8_t* codes, const float* x, int64_t row, int64_t inputs) {
        for (int64_t k = 0; k < inputs; ++k, codes += WIDTH) {
            __m512 w[BLOCKS];
            FXQ_UNROLL for (int b = 0; b < BLOCKS; ++b) {
                const __m128i own = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + b * LANES));
                w[b] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(own));
            }
            add<R>(sums, w, x + k, row);
        }
    }
};

// 32 bits for each output of a strip, with the codes of 8 inputs, after 8 inputs. A permutation reads but the lowest
// four bits of its indices, so that it turns codes into floats without a mask.
struct Int4 {
    static constexpr int64_t bytes(int64_t inputs) { return inputs * WIDTH / 2; }

    template <int R>
    FXQ_INLINE void section(Sums<R>& sums, const int8_t* codes, const float* x, int64_t row, int64_t inputs) {
        const __m512 floats = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
        for (int64_t k = 0; k < inputs; k += 8, codes += bytes(8)) {
            __m512i eight[BLOCKS];
            FXQ_UNROLL for (int b = 0; b < BLOCKS; ++b) eight[b] = _mm512_loadu_si512(codes + 4 * b * LANES);
            FXQ_UNROLL for (int i = 0; i < 8; ++i) {
                __m512 w[BLOCKS];
                FXQ_UNROLL for (int b = 0; b < BLOCKS; ++b)
                    w[b] = _mm512_permutexvar_ps(_mm512_srli_epi32(eight[b], 4 * i), floats);
                add<R>(sums, w, x + k + i, row);
            }
        }
    }
};

FXQ_TARGET float sum_of(const float* x, int64_t count) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t k = 0; k < count; k += LANES)
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask_of(count - k), x + k));
    return _mm512_reduce_add_ps(sum);
}

class Product final : public Work {
   public:
    Product(const FxqWeightOnly& layer, const float* x, int64_t rows, int64_t row, float* out)
        : layer_(layer), x_(x), rows_(rows), row_(row), out_(out), strips_(padded(layer.outputs, WIDTH) / WIDTH),
          groups_(layer.group ? layer.inputs / layer.group : 0), inputs_of_groups_(new float[rows * groups_]) {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t g = 0; g < groups_; ++g)
                inputs_of_groups_[r * groups_ + g] = sum_of(x + r * row + g * layer.group, layer.group);
    }

    // A strip is used for all rows before the next is read.
    void part(int number, int parts) override {
        const Share own(strips_, number, parts);
        for (int64_t n = own.first; n < own.last; ++n)
            for (int64_t r = 0; r < rows_; r += MOST_ROWS) switch (rows_ - r) {
                    case 1: tile<1>(n, r); break;
                    case 2: tile<2>(n, r); break;
                    case 3: tile<3>(n, r); break;
                    default: tile<MOST_ROWS>(n, r);
                }
    }

   private:
    template <int R>
    void tile(int64_t strip, int64_t first) const {
        alignas(64) float totals[R * WIDTH] = {};
        if (groups_)
            sum_groups<R>(strip, first, totals);
        else
            sum_sections<R>(strip, first, totals);
        for (int r = 0; r < R; ++r) finish(strip, totals + r * WIDTH, out_ + (first + r) * layer_.outputs);
    }

    template <int R>
    FXQ_TARGET void sum_sections(int64_t strip, int64_t first, float* totals) const {
        const int8_t* const codes = layer_.codes + strip * Int8::bytes(layer_.inputs);
        const float* const x = x_ + first * row_;
        for (int64_t k = 0; k < layer_.inputs; k += SECTION) {
            const int64_t left = layer_.inputs - k;
            Sums<R> sums = {};
            Int8::section<R>(sums, codes + Int8::bytes(k), x + k, row_, left < SECTION ? left : SECTION);
            FXQ_UNROLL for (int r = 0; r < R; ++r) {
                FXQ_UNROLL for (int b = 0; b < BLOCKS; ++b) {
                    float* const total = totals + r * WIDTH + b * LANES;
                    _mm512_store_ps(total, _mm512_add_ps(_mm512_load_ps(total), sums[r][b]));
                }
            }
        }
    }

    template <int R>
    FXQ_TARGET void sum_groups(int64_t strip, int64_t first, float* totals) const {
        const int8_t* const codes = layer_.codes + strip * Int4::bytes(layer_.inputs);
        const float* const x = x_ + first * row_;
        for (int64_t g = 0; g < groups_; ++g) {
            Sums<R> sums = {};
            Int4::section<R>(sums, codes + Int4::bytes(g * layer_.group), x + g * layer_.group, row_, layer_.group);
            const int64_t at = (strip * groups_ + g) * WIDTH;
            FXQ_UNROLL for (int r = 0; r < R; ++r) {
                const __m512 inputs = _mm512_set1_ps(inputs_of_groups_[(first + r) * groups_ + g]);
                FXQ_UNROLL for (int b = 0; b < BLOCKS; ++b) {
                    float* const total = totals + r * WIDTH + b * LANES;
                    const __m512 scale = _mm512_loadu_ps(layer_.scale + at + b * LANES);
                    const __m512 offset = _mm512_loadu_ps(layer_.offset + at + b * LANES);
                    const __m512 before = _mm512_fmadd_ps(offset, inputs, _mm512_load_ps(total));
                    _mm512_store_ps(total, _mm512_fmadd_ps(sums[r][b], scale, before));
                }
            }
        }
    }

    // One row's outputs of a strip: s8 codes get their scale here, int4 codes have it.
    FXQ_TARGET void finish(int64_t strip, const float* totals, float* out) const {
        const int64_t at = strip * WIDTH, left = layer_.outputs - at, end = left < WIDTH ? left : WIDTH;
        for (int64_t b = 0; b < end; b += LANES) {
            const __mmask16 mask = mask_of(end - b);
            __m512 y = _mm512_load_ps(totals + b);
            if (!groups_) y = _mm512_mul_ps(y, _mm512_loadu_ps(layer_.scale + at + b));
            if (layer_.bias != nullptr) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, layer_.bias + at + b));
            _mm512_mask_storeu_ps(out + at + b, mask, y);
        }
    }

    const FxqWeightOnly& layer_;
    const float* const x_;
    const int64_t rows_, row_;
    float* const out_;
    const int64_t strips_, groups_;
    const std::unique_ptr<float[]> inputs_of_groups_;  // sums, (rows, groups)
};

}  // namespace
}  // namespace fxq

FXQ_EXPORT void fxq_weight_only_run(const FxqWeightOnly* layer, const float* x, int64_t rows, int64_t row, float* out,
                                    int threads) {
    const int64_t most = rows * layer->outputs * layer->inputs / fxq::PRODUCTS + 1;
    fxq::Product work(*layer, x, rows, row, out);
    fxq::run_team(&work, threads < most ? threads : static_cast<int>(most));
}
#else
FXQ_EXPORT void fxq_weight_only_run(const FxqWeightOnly*, const float*, int64_t, int64_t, float*, int) {}
#endif
