// Sums of a row of outputs, column by column: a column of the window's rows is turned around once and serves every
// output whose window holds it. Windows of K x K taps, K 1, 3 or 5, whose columns are neighbours.
#ifndef FXQ_DEPTHWISE_COLUMNS_H
#define FXQ_DEPTHWISE_COLUMNS_H

#include "parts_vector.h"

namespace fxq {
namespace FXQ_NS {

// A row: where its first window begins, and the bytes to the next row and the next column of taps.
struct Taps {
    const uint8_t* x;
    int64_t row, column;
    const int8_t* weights;  // [column of the window][four rows][part][lane][4]
    const int32_t* start;   // [part][lane]
};

template <int K, int S, int segments>
class Columns {
   public:
    // Outputs that are begun and not complete when a column comes. A row needs at least so many.
    static constexpr int WAITING = (K - 1) / S;

    FXQ_INLINE Columns(const Taps& taps, const Places<segments>& places)
        : taps_(taps), places_(places), weights_(taps.weights), start_(load_parts(taps.start)) {}

    // Calls emit(sums) for each of `width` outputs in turn.
    template <class Emit>
    FXQ_INLINE void run(int64_t width, const Emit& emit) {
        begin<0>(emit);
        for (int64_t t = WAITING; t < width; ++t) step<0, WAITING>(t, emit);
        end<1>(width, emit);
    }

   private:
    static constexpr int QUADS = (K + 3) / 4;
    static constexpr int64_t EACH = 4 * CHUNK;  // bytes of the weights of four taps

    struct Column {
        Parts quad[QUADS];
    };

    // The weights of up to 3 columns stay in registers; those of 5 do not fit.
    struct Near {
        Parts column[K];
        FXQ_INLINE explicit Near(const int8_t* weights) { get<0>(weights); }
        template <int i>
        FXQ_INLINE void get(const int8_t* weights) {
            column[i] = load_weight_parts(weights + i * EACH);
            if constexpr (i + 1 < K) get<i + 1>(weights);
        }
        template <int tap>
        FXQ_INLINE void add(Parts* sums, const Column& taps) const {
            dot_parts(sums, taps.quad[0], column[tap]);
        }
    };
    struct Far {
        const int8_t* weights;
        FXQ_INLINE explicit Far(const int8_t* weights) : weights(weights) {}
        template <int tap>
        FXQ_INLINE void add(Parts* sums, const Column& taps) const {
            dot_parts(sums, taps.quad[0], weights + tap * QUADS * EACH);
            dot_parts(sums, taps.quad[1], weights + (tap * QUADS + 1) * EACH);
        }
    };
    template <int quads, class Unused = void>
    struct Kept {
        using Type = Near;
    };
    template <class Unused>
    struct Kept<2, Unused> {
        using Type = Far;
    };

    FXQ_INLINE I load(const uint8_t* x) const { return load_places(x, places_); }

    FXQ_INLINE Column column(int64_t number) const {
        const uint8_t* x = taps_.x + number * taps_.column;
        if constexpr (K == 1) return {{turn(load(x))}};
        const I a = load(x), b = load(x + taps_.row), c = load(x + 2 * taps_.row);
        if constexpr (K == 3) return {{turn(a, b, c, no_bytes())}};
        if constexpr (K == 5)
            return {{turn(a, b, c, load(x + 3 * taps_.row)), turn(load(x + 4 * taps_.row))}};
    }

    // Adds column i of a step to the outputs that began `last` down to `first` steps ago.
    template <int last, int first, int i>
    FXQ_INLINE void add_column(const Column& column) {
        if constexpr (last >= first) {
            if constexpr (last * S + i < K) weights_.template add<last * S + i>(&waits_[last], column);
            add_column<last - 1, first, i>(column);
        }
    }

    template <int last>
    FXQ_INLINE void shift() {
        if constexpr (last > 0) {
            waits_[last] = waits_[last - 1];
            shift<last - 1>();
        } else {
            waits_[0] = start_;
        }
    }

    // Columns t * S .. t * S + S - 1, for the outputs t - first .. t - last.
    template <int first, int last, class Emit>
    FXQ_INLINE void step(int64_t t, const Emit& emit) {
        shift<WAITING>();
        add_column<last, first, 0>(column(t * S));
        if constexpr (last == WAITING) emit(waits_[WAITING]);
        constexpr int second = last < (K - 2) / S ? last : (K - 2) / S;
        if constexpr (S == 2 && first <= second) add_column<second, first, 1>(column(t * S + 1));
    }

    template <int t, class Emit>
    FXQ_INLINE void begin(const Emit& emit) {
        if constexpr (t < WAITING) {
            step<0, t>(t, emit);
            begin<t + 1>(emit);
        }
    }

    template <int first, class Emit>
    FXQ_INLINE void end(int64_t width, const Emit& emit) {
        if constexpr (first <= WAITING) {
            step<first, WAITING>(width - 1 + first, emit);
            end<first + 1>(width, emit);
        }
    }

    const Taps taps_;
    const Places<segments> places_;
    const typename Kept<QUADS>::Type weights_;
    const Parts start_;
    Parts waits_[WAITING + 1];  // of the output that began i steps ago
};

}  // namespace FXQ_NS
}  // namespace fxq
#endif
