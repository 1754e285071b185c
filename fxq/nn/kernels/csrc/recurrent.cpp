// The steps of a recurrent layer. The threads share the sequences of a batch where there are enough of them, and need
// not wait for each other; else they share the states: each has the weights of its own in its cache at every step, and
// all wait after each step.

#include "dynamic.h"

#if defined(__x86_64__)
#include <cstring>
#include <memory>

#include "codes.h"
#include "functions.h"
#include "product.h"
#include "team.h"

namespace fxq {
namespace {

constexpr int64_t SEQUENCES = 8;  // for each thread that shares a batch
// Products from which on a thread more pays: of a call without waiting, and of a step.
constexpr int64_t CALL = int64_t(1) << 22, STEP = int64_t(1) << 18;

class Recurrent final : public Work {
   public:
    Recurrent(const FxqRecurrent& layer, const FxqSequence& sequence, int threads, bool by_batch)
        : layer_(layer), s_(sequence), hidden_(layer.weight.rows), strips_(layer.weight.gates, hidden_),
          depth_(depth_of(hidden_)), by_batch_(by_batch),
          codes_(new uint8_t[(by_batch ? 1 : threads) * s_.batch * depth_]),
          maps_(new Map[(by_batch ? 1 : threads) * s_.batch]) {}

    void part(int number, int parts) override {
        const Share rows(s_.batch, by_batch_ ? number : 0, by_batch_ ? parts : 1);
        const Share strips(strips_.count, by_batch_ ? 0 : number, by_batch_ ? 1 : parts);
        const int64_t at = by_batch_ ? rows.first : number * s_.batch;  // every thread has codes of its own
        uint8_t* const codes = codes_.get() + at * depth_;
        Map* const maps = maps_.get() + at;
        for (int64_t i = 0; i < s_.steps; ++i) {
            quantise(i, rows, codes, maps);
            for (int64_t n = strips.first; n < strips.last; ++n) step(i, n, rows, codes, maps);
            if (!by_batch_) barrier_.wait(parts);
        }
        const Share own(s_.batch, number, parts);
        for (int64_t b = own.first; b < own.last; ++b)
            std::memcpy(s_.h + b * hidden_, state(s_.steps, b), hidden_ * sizeof(float));
    }

   private:
    int64_t time(int64_t i) const { return s_.backwards ? s_.steps - 1 - i : i; }

    // What step `i` starts from: the result of the one before.
    const float* state(int64_t i, int64_t b) const {
        return i == 0 ? s_.h + b * hidden_ : s_.out + time(i - 1) * s_.out_step + b * s_.out_row;
    }

    void quantise(int64_t i, const Share& rows, uint8_t* codes, Map* maps) const {
        const int64_t count = rows.last - rows.first;
        Range all;
        for (int64_t r = 0; r < count; ++r) {
            const Range range = range_of(state(i, rows.first + r), hidden_);
            all.add(range);
            maps[r] = symmetric(range);
        }
        for (int64_t r = 0; r < count; ++r) {
            if (layer_.scales == OF_ALL) maps[r] = symmetric(all);
            encode(state(i, rows.first + r), hidden_, maps[r], codes, r, count);
        }
    }

    void step(int64_t i, int64_t strip, const Share& rows, const uint8_t* codes, const Map* maps) const {
        const int64_t width = strips_.width(), count = rows.last - rows.first;
        const int8_t* const weight = layer_.weight.codes + strip * width * depth_;
        alignas(64) int32_t sums[MOST_ROWS * MOST_BLOCKS * LANES];
        for (int64_t r = 0; r < count;) {
            const int64_t together = Group::of(r, count).rows;
            multiply(codes + r * depth_, depth_, weight, strips_.blocks, together, sums);
            for (int64_t k = 0; k < together; ++k, ++r)
                finish(i, rows.first + r, strip, sums + k * width, maps[r].scale);
        }
    }

    // What 16 states of one sequence are computed from.
    struct Place {
        const float* a;        // the gates' shares of the input, of this sequence
        const int32_t* sums;   // of the first gate; those of the others follow
        int64_t k, at;         // the number of the first state, and where its first gate lies in the weight
        __mmask16 mask;
        __m512 scale;
    };

    // W h of one gate: (sum - 128 * sum of the weights) * scale of the row * scale of the state.
    FXQ_TARGET __m512 recurrent(const Place& p, int gate) const {
        return _mm512_mul_ps(scaled(layer_.weight, p.at + gate * LANES, p.sums + gate * LANES, 128), p.scale);
    }

    FXQ_TARGET __m512 given(const Place& p, int gate) const {
        return _mm512_maskz_loadu_ps(p.mask, p.a + gate * hidden_ + p.k);
    }

    FXQ_TARGET __m512 both(const Place& p, int gate) const { return _mm512_add_ps(given(p, gate), recurrent(p, gate)); }

    // The new states of one sequence that a strip of weights gives.
    FXQ_TARGET void finish(int64_t i, int64_t b, int64_t strip, const int32_t* sums, float scale) const {
        const float* const a = s_.gates + time(i) * s_.gates_step + b * s_.gates_row;
        const float* const h = state(i, b);
        float* const out = s_.out + time(i) * s_.out_step + b * s_.out_row;
        const int64_t first = strip * strips_.units, last = first + strips_.units;
        for (int64_t k = first; k < last && k < hidden_; k += LANES) {
            const __mmask16 mask = mask_of(hidden_ - k);
            const Place p{a, sums + (k - first), k, strip * strips_.width() + (k - first), mask, _mm512_set1_ps(scale)};
            __m512 y;
            if (layer_.kind == LSTM) {
                const __m512 in = sigmoid_of(both(p, 0)), f = sigmoid_of(both(p, 1)), o = sigmoid_of(both(p, 2));
                float* const c = s_.c + b * hidden_ + k;
                const __m512 kept = _mm512_mul_ps(f, _mm512_maskz_loadu_ps(mask, c));
                const __m512 cell = _mm512_fmadd_ps(in, tanh_of(both(p, 3)), kept);
                _mm512_mask_storeu_ps(c, mask, cell);
                y = _mm512_mul_ps(o, tanh_of(cell));
            } else if (layer_.kind == GRU) {
                const __m512 r = sigmoid_of(both(p, 0)), z = sigmoid_of(both(p, 1));
                __m512 w = recurrent(p, 2);
                if (layer_.bias != nullptr) w = _mm512_add_ps(w, _mm512_maskz_loadu_ps(mask, layer_.bias + k));
                const __m512 n = tanh_of(_mm512_fmadd_ps(r, w, given(p, 2)));
                y = _mm512_fmadd_ps(z, _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, h + k), n), n);
            } else {
                const __m512 sum = both(p, 0);
                y = layer_.kind == RNN_TANH ? tanh_of(sum) : _mm512_max_ps(_mm512_setzero_ps(), sum);
            }
            _mm512_mask_storeu_ps(out + k, mask, y);
        }
    }

    const FxqRecurrent& layer_;
    const FxqSequence& s_;
    const int64_t hidden_;
    const Strips strips_;
    const int64_t depth_;
    const bool by_batch_;
    const std::unique_ptr<uint8_t[]> codes_;
    const std::unique_ptr<Map[]> maps_;
};

int at_most(int threads, int64_t most) { return threads < most ? threads : static_cast<int>(most); }

}  // namespace
}  // namespace fxq

FXQ_EXPORT void fxq_recurrent_run(const FxqRecurrent* layer, const FxqSequence* sequence, int threads) {
    const FxqWeight& weight = layer->weight;
    const int64_t step = sequence->batch * weight.gates * weight.rows * weight.inputs;
    const bool by_batch = layer->scales == fxq::BY_ROW && sequence->batch >= fxq::SEQUENCES * threads;
    threads = fxq::at_most(threads, by_batch ? sequence->steps * step / fxq::CALL + 1 : step / fxq::STEP + 1);
    if (!by_batch) threads = fxq::at_most(threads, fxq::Strips(weight.gates, weight.rows).count);
    fxq::Recurrent work(*layer, *sequence, threads, by_batch);
    fxq::run_team(&work, threads);
}
#else
FXQ_EXPORT void fxq_recurrent_run(const FxqRecurrent*, const FxqSequence*, int) {}
#endif
