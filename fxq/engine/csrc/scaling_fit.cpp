// The factor is sought near the slope. For a factor, every x bounds the sum of offsets from below, from above, or both:
// with O = rest * factor + 2^16 * (plus - minus), in units of 2^-(16 + shift) codes,
//     table[x] * 2^(16 + shift) <= 256 w * factor + O < (table[x] + 1) * 2^(16 + shift).
// The lowest code is not bounded from below, the highest not from above.
#include "scaling_fit.h"

#include <math.h>

namespace fxq {
namespace {

constexpr int64_t FAR = int64_t(1) << 40;  // beyond any offset
constexpr int MOST_SHIFT = 15;  // 1 at least: vectors divide by multiplying with 2^(16 - shift)
constexpr int NEARBY = 16;  // factors on either side of the slope's

uint8_t scaled(const Scaling& s, int32_t x, int32_t lowest, int32_t highest) {
    int32_t v = ((((x ^ s.flip) << 8) + s.rest) * int64_t(s.factor)) >> 16;
    v = v + s.plus < 65535 ? v + s.plus : 65535;
    v = v > s.minus ? (v - s.minus) >> s.shift : 0;
    v = v < 255 ? v : 255;
    v = v < highest ? v : highest;
    return static_cast<uint8_t>(v > lowest ? v : lowest);
}

bool gives(const Scaling& s, const uint8_t (&table)[256], int32_t lowest, int32_t highest) {
    for (int32_t x = 0; x < 256; ++x)
        if (scaled(s, x, lowest, highest) != table[x]) return false;
    return true;
}

// The offsets that a factor allows, from `low` to `high`.
struct Range {
    int64_t low = -FAR, high = FAR;

    Range(const uint8_t (&table)[256], const Scaling& s, int32_t lowest, int32_t highest) {
        for (int32_t x = 0; x < 256; ++x) {
            const int64_t product = int64_t(256) * (x ^ s.flip) * s.factor;
            const int64_t code = int64_t(table[x]) << (16 + s.shift), next = int64_t(table[x] + 1) << (16 + s.shift);
            if (table[x] > lowest && code - product > low) low = code - product;
            if (table[x] < highest && next - 1 - product < high) high = next - 1 - product;
        }
    }
};

// Splits an offset in the range into rest, plus and minus.
bool set_offset(const Range& range, Scaling* s) {
    const int64_t low = range.low > -FAR ? range.low : range.high - 65535;
    for (int64_t rest = 0; rest < 256; ++rest) {
        const int64_t left = low - rest * s->factor;
        const int64_t whole = (left + 65535) >> 16;  // rounded up
        if (rest * s->factor + whole * 65536 > range.high) continue;
        if (whole < -65535 || whole > 65535) return false;
        s->rest = static_cast<uint8_t>(rest);
        s->plus = static_cast<uint16_t>(whole > 0 ? whole : 0);
        s->minus = static_cast<uint16_t>(whole < 0 ? -whole : 0);
        return true;
    }
    return false;
}

// The finest unit in which the slope fits 16 bits and the sum does not saturate below the largest code.
uint16_t shift_of(double slope, int32_t largest) {
    int shift = MOST_SHIFT;
    while (shift > 1 && (ldexp(slope, shift + 8) > 65535.0 - NEARBY || (65535 >> shift) < largest)) --shift;
    return static_cast<uint16_t>(shift);
}

}  // namespace

bool fit_scaling(const uint8_t (&table)[256], double slope, int32_t lowest, int32_t highest, Scaling* found) {
    Scaling s;
    s.flip = slope < 0 ? 255 : 0;
    s.shift = shift_of(fabs(slope), table[0] > table[255] ? table[0] : table[255]);
    const double best = ldexp(fabs(slope), s.shift + 8);
    if (!(best <= 65535.0 - NEARBY)) return false;  // also where it is not a number
    const int32_t middle = static_cast<int32_t>(lrint(best));
    for (int i = 0; i <= 2 * NEARBY; ++i) {
        const int32_t factor = middle + (i % 2 ? (i + 1) / 2 : -i / 2);
        if (factor < 0) continue;
        s.factor = static_cast<uint16_t>(factor);
        const Range range(table, s, lowest, highest);
        if (range.low > range.high || !set_offset(range, &s) || !gives(s, table, lowest, highest)) continue;
        *found = s;
        return true;
    }
    return false;
}

}  // namespace fxq
