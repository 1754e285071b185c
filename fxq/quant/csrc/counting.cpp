// Counts the values of a tensor for a histogram, and finds its extremes, in one sweep over memory.
//
// fxq/quant/histogram.py and fxq/quant/sampling.py define the numbers, and compute the same, count for count, where
// this library was not built: bins have the width of a power of two, so no choice of a bin rounds, and the order in
// which rows are counted does not matter.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define FXQ_EXPORT extern "C" __attribute__((visibility("default")))

struct FxqCounts {
    int64_t* positive;  // [BINS]: bin i holds values with i w <= |x| < (i + 1) w, w = 2^exponent / BINS, without zeros
    int64_t* negative;  // [BINS]
    int64_t zeros;
    int32_t exponent;
    int32_t has_exponent;  // 0 before the first value other than zero
    float minimum;
    float maximum;
};

namespace {
constexpr int BINS = 2048;  // on each side of zero
constexpr int BIN_BITS = 11;
constexpr int LOWEST = -120;  // the smallest exponent: below it a bin's width would leave float32's normal range
constexpr int LARGEST = 100;  // exponents beyond it are multiplied with in two steps
constexpr int BLOCK = 64;     // values of a part that give one largest and one smallest
constexpr int END = 4;        // blocks whose extremes count as the end of a part

// A smallest and a largest value, NaN both where a value is not finite.
struct Range {
    float low;
    float high;

    bool finite() const { return low <= high; }
    bool holds(float v) const { return v >= low && v <= high; }
};
constexpr Range EVERYTHING{-INFINITY, INFINITY};

// The range of what it is shown.
struct Seen {
    float low = INFINITY;
    float high = -INFINITY;
    float wrong = 0.0f;  // the sum of v - v: NaN from the first value on that is not finite

    void show(float least, float most, float difference) {
        low = std::min(low, least);
        high = std::max(high, most);
        wrong += difference;
    }

    Range range() const { return wrong == 0.0f ? Range{low, high} : Range{NAN, NAN}; }
};

// Write the values beyond the limits to `ends`, which has room for all; return where they end.
float* keep(const float* x, int64_t count, Range limits, float* ends) {
    for (int64_t i = 0; i < count; ++i) {
        *ends = x[i];
        ends += (x[i] < limits.low) | (x[i] > limits.high);
    }
    return ends;
}

// What every machine can: show all values, and do what `keep` does.
float* scan_plain(const float* x, int64_t count, Range limits, float* ends, Seen& seen) {
    for (int64_t i = 0; i < count; ++i) seen.show(x[i], x[i], x[i] - x[i]);
    return keep(x, count, limits, ends);
}

// The same with vectors of four, which GCC and clang make instructions of on most machines.
float* scan_four(const float* x, int64_t count, Range limits, float* ends, Seen& seen) {
    typedef float Floats __attribute__((vector_size(16), aligned(4), may_alias));
    typedef int32_t Ints __attribute__((vector_size(16)));
    const Floats least = limits.low - Floats{}, most = limits.high - Floats{};
    Floats low = INFINITY - Floats{}, high = -low, wrong{};
    const float* const last = x + count - BLOCK;
    const float* v = x;
    for (; v <= last; v += BLOCK) {
        Ints beyond{};
        for (int i = 0; i < BLOCK; i += 4) {
            const Floats some = *reinterpret_cast<const Floats*>(v + i);
            low = some < low ? some : low;
            high = some > high ? some : high;
            wrong += some - some;
            beyond |= (some < least) | (some > most);
        }
        if (beyond[0] | beyond[1] | beyond[2] | beyond[3]) ends = keep(v, BLOCK, limits, ends);
    }
    for (int i = 0; i < 4; ++i) seen.show(low[i], high[i], wrong[i]);
    return scan_plain(v, x + count - v, limits, ends, seen);
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) float* scan_sixteen(
    const float* x, int64_t count, Range limits, float* ends, Seen& seen) {
    const __m512 least = _mm512_set1_ps(limits.low), most = _mm512_set1_ps(limits.high);
    __m512 low = _mm512_set1_ps(INFINITY), high = _mm512_set1_ps(-INFINITY), wrong = _mm512_setzero_ps();
    const float* const last = x + count - 16;
    const float* v = x;
    for (; v <= last; v += 16) {
        const __m512 some = _mm512_loadu_ps(v);
        low = _mm512_min_ps(low, some);
        high = _mm512_max_ps(high, some);
        wrong = _mm512_add_ps(wrong, _mm512_sub_ps(some, some));
        const unsigned beyond =
            _mm512_cmp_ps_mask(some, least, _CMP_LT_OQ) | _mm512_cmp_ps_mask(some, most, _CMP_GT_OQ);
        if (!beyond) continue;
        const int found = __builtin_popcount(beyond);
        _mm512_mask_storeu_ps(ends, (1u << found) - 1, _mm512_maskz_compress_ps(beyond, some));
        ends += found;
    }
    seen.show(_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high), _mm512_reduce_add_ps(wrong));
    return scan_plain(v, x + count - v, limits, ends, seen);
}
#endif

// The best of this machine, or four at a time where the environment asks for a lesser instruction set, as the engine's.
auto best_scan() {
#if defined(__x86_64__)
    const char* const wanted = std::getenv("FXQ_ISA");
    const bool lesser = wanted && *wanted && std::strcmp(wanted, "avx512vnni") && std::strcmp(wanted, "amx");
    if (!lesser && __builtin_cpu_supports("avx512f")) return scan_sixteen;
#endif
    return scan_four;
}

const auto scan = best_scan();

void look(const float* x, int64_t count, Seen& seen) {
    float unused;
    scan(x, count, EVERYTHING, &unused, seen);
}

// Merge bins in pairs, `times` times.
void merge_bins(int64_t* counts, int times) {
    const int factor = 1 << std::min(times, BIN_BITS);
    for (int i = 0; i < BINS / factor; ++i) {
        int64_t sum = 0;
        for (int j = 0; j < factor; ++j) sum += counts[i * factor + j];
        counts[i] = sum;
    }
    std::fill(counts + BINS / factor, counts + BINS, 0);
}

// Widen the bins' range until it holds `found`.
void hold(FxqCounts& counts, Range found) {
    counts.minimum = std::min(counts.minimum, found.low);
    counts.maximum = std::max(counts.maximum, found.high);
    const float largest = std::max(-found.low, found.high);
    if (largest == 0.0f) return;
    int needed;
    std::frexp(largest, &needed);
    needed = std::max(needed, LOWEST);
    if (counts.has_exponent && needed > counts.exponent) {
        merge_bins(counts.positive, needed - counts.exponent);
        merge_bins(counts.negative, needed - counts.exponent);
    }
    counts.exponent = counts.has_exponent ? std::max(needed, counts.exponent) : needed;
    counts.has_exponent = 1;
}

// Add values that the bins' range holds.
void tally(FxqCounts& counts, const float* x, int64_t count, int64_t weight) {
    const int power = counts.has_exponent ? BIN_BITS - counts.exponent : 0;
    const float first = std::ldexp(1.0f, std::min(power, LARGEST));
    const float second = std::ldexp(1.0f, power - std::min(power, LARGEST));
    int64_t* const sides[2] = {counts.positive, counts.negative};
    int64_t zeros = 0;
    int32_t bins[BLOCK];
    for (const float* const end = x + count; x < end; x += BLOCK) {
        const int some = int(std::min<int64_t>(BLOCK, end - x));
        for (int i = 0; i < some; ++i) bins[i] = int32_t(std::fabs(x[i]) * first * second);
        for (int i = 0; i < some; ++i) {
            sides[x[i] < 0.0f][bins[i]] += weight;
            zeros += x[i] == 0.0f;
        }
    }
    counts.positive[0] -= zeros * weight;  // they fell into the first bin
    counts.zeros += zeros * weight;
}

// What stands for a row of which every `stride`-th value is counted: these, and every value beyond their own ends.
class Part {
public:
    Part(int64_t length, int64_t stride)
        : length_(length), stride_(stride), values_((length + stride - 1) / stride), ends_(new float[length]) {}

    // Return the row's range.
    Range take(const float* x) {
        for (size_t i = 0; i < values_.size(); ++i) values_[i] = x[i * stride_];
        const Range limits = ends_of_values();
        if (!limits.finite()) return limits;
        Seen seen;
        end_ = scan(x, length_, limits, ends_.get(), seen);
        const auto beyond = [&](float v) { return !limits.holds(v); };
        inside_ = std::remove_if(values_.begin(), values_.end(), beyond) - values_.begin();
        return seen.range();
    }

    void count(FxqCounts& counts) {
        tally(counts, values_.data(), inside_, stride_);
        tally(counts, ends_.get(), end_ - ends_.get(), 1);
    }

private:
    Range ends_of_values() {
        lows_.clear();
        highs_.clear();
        for (size_t i = 0; i + BLOCK <= values_.size(); i += BLOCK) {
            Seen seen;
            look(values_.data() + i, BLOCK, seen);
            const Range block = seen.range();
            if (!block.finite()) return block;
            lows_.push_back(block.low);
            highs_.push_back(block.high);
        }
        std::nth_element(lows_.begin(), lows_.begin() + (END - 1), lows_.end());
        std::nth_element(highs_.begin(), highs_.begin() + (END - 1), highs_.end(), std::greater<float>());
        return {lows_[END - 1], highs_[END - 1]};
    }

    int64_t length_;
    int64_t stride_;
    std::vector<float> values_, lows_, highs_;
    std::unique_ptr<float[]> ends_;
    int64_t inside_ = 0;
    float* end_ = nullptr;
};
}  // namespace

FXQ_EXPORT int32_t fxq_counting_version() { return 2; }

// Write the smallest and the largest value, of at least one; NaN for both where a value is not finite. There are `rows`
// rows of `length` values, `apart` values from one to the next.
FXQ_EXPORT void fxq_extremes(const float* x, int64_t rows, int64_t length, int64_t apart, float* low_high) {
    Seen seen;
    for (int64_t r = 0; r < rows; ++r) look(x + r * apart, length, seen);
    low_high[0] = seen.range().low;
    low_high[1] = seen.range().high;
}

// Add such rows to `counts`, of each every `stride`-th value and all at its ends, where `stride` is more than 1. A row
// then has at least 4 blocks of 64 strides. Return 0 where a value is not finite; some rows may be counted then.
FXQ_EXPORT int32_t fxq_count(
    FxqCounts* counts, const float* x, int64_t rows, int64_t length, int64_t apart, int64_t stride) {
    if (stride == 1) {
        float low_high[2];
        fxq_extremes(x, rows, length, apart, low_high);
        const Range found{low_high[0], low_high[1]};
        if (!found.finite()) return 0;
        hold(*counts, found);
        for (int64_t r = 0; r < rows; ++r) tally(*counts, x + r * apart, length, 1);
        return 1;
    }
    Part part(length, stride);
    for (int64_t r = 0; r < rows; ++r) {
        const Range found = part.take(x + r * apart);
        if (!found.finite()) return 0;
        hold(*counts, found);
        part.count(*counts);
    }
    return 1;
}
