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
    const int8_t* weights;  // of four rows, [column][part][lane][4]; of a fifth row: its first four taps, its last
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
    static constexpr int64_t EACH = 4 * CHUNK;  // bytes of the weights of four taps

    // Up to four rows of a column, and the fifth as it lies in memory.
    struct Column {
        Parts rows;
        I fifth;
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
        FXQ_INLINE void add(Parts* sums, const Parts& taps) const {
            dot_parts(sums, taps, column[tap]);
        }
    };
    struct Far {
        const int8_t* weights;
        FXQ_INLINE explicit Far(const int8_t* weights) : weights(weights) {}
        template <int tap>
        FXQ_INLINE void add(Parts* sums, const Parts& taps) const {
            dot_parts_at<tap * EACH>(sums, taps, weights);
        }
    };
    template <bool five, class Unused = void>
    struct Kept {
        using Type = Near;
    };
    template <class Unused>
    struct Kept<true, Unused> {
        using Type = Far;
    };

    FXQ_INLINE I load(const uint8_t* x) const { return load_places(x, places_); }

    FXQ_INLINE Column column(int64_t number) const {
        const uint8_t* x = taps_.x + number * taps_.column;
        if constexpr (K == 1) return {turn(load(x)), no_bytes()};
        const I a = load(x), b = load(x + taps_.row), c = load(x + 2 * taps_.row);
        if constexpr (K == 3) return {turn(a, b, c, no_bytes()), no_bytes()};
        if constexpr (K == 5) return {turn(a, b, c, load(x + 3 * taps_.row)), load(x + 4 * taps_.row)};
    }

    // The fifth row of the output that is complete: four columns as four taps, and the newest.
    FXQ_INLINE void add_fifth(I newest) {
        weights_.template add<5>(&waits_[WAITING], turn(fifth_[0], fifth_[1], fifth_[2], fifth_[3]));
        weights_.template add<6>(&waits_[WAITING], turn(newest));
    }

    FXQ_INLINE void remember(I newest) {
        fifth_[0] = fifth_[1];
        fifth_[1] = fifth_[2];
        fifth_[2] = fifth_[3];
        fifth_[3] = newest;
    }

    // Adds column i of a step to the outputs that began `last` down to `first` steps ago.
    template <int last, int first, int i>
    FXQ_INLINE void add_column(const Parts& rows) {
        if constexpr (last >= first) {
            if constexpr (last * S + i < K) weights_.template add<last * S + i>(&waits_[last], rows);
            add_column<last - 1, first, i>(rows);
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
        const Column even = column(t * S);
        add_column<last, first, 0>(even.rows);
        if constexpr (last == WAITING) {
            if constexpr (K == 5) add_fifth(even.fifth);
            emit(waits_[WAITING]);
        }
        if constexpr (K == 5) remember(even.fifth);
        constexpr int second = last < (K - 2) / S ? last : (K - 2) / S;
        if constexpr (S == 2 && first <= second) {
            const Column odd = column(t * S + 1);
            add_column<second, first, 1>(odd.rows);
            if constexpr (K == 5) remember(odd.fifth);
        }
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
    const typename Kept<K == 5>::Type weights_;
    const Parts start_;
    Parts waits_[WAITING + 1];  // of the output that began i steps ago
    I fifth_[4];                // of the last four columns
};

}  // namespace FXQ_NS
}  // namespace fxq
#endif
