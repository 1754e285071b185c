// Tiles of Winograd's transforms: where they lie in an image, and their inputs and sums transformed.
#ifndef FXQ_WINOGRAD_TILES_H
#define FXQ_WINOGRAD_TILES_H

#include "conv_job.h"
#include "winograd.h"

namespace fxq {
namespace FXQ_NS {

// A number of outputs of a row or a column as tiles.
struct Line {
    int64_t outputs;

    int64_t tiles() const { return (outputs + TILE - 1) / TILE; }
    int64_t in(int64_t tile) const { return outputs - tile * TILE < TILE ? outputs - tile * TILE : TILE; }
    bool short_at(int64_t tile) const { return in(tile) <= TILE / 2; }
    int64_t positions() const { return tiles() * PATCH - (short_at(tiles() - 1) ? 2 : 0); }
};

// One tile: where its output begins, how much of it lies inside of the image, and which sides are short.
struct Tile {
    int64_t image, row, column;  // of the first output
    int64_t height, width;       // outputs inside
    bool low, narrow;            // short in height, in width

    Tile() = default;
    Tile(const Tensor& y, int64_t number) {
        const Line rows{y.height}, columns{y.width};
        const int64_t i = number / columns.tiles() % rows.tiles(), j = number % columns.tiles();
        image = number / (rows.tiles() * columns.tiles());
        row = i * TILE, column = j * TILE;
        height = rows.in(i), width = columns.in(j);
        low = rows.short_at(i), narrow = columns.short_at(j);
    }
};

// Tiles that are worked through together: first the narrow ones, then whole ones, low ones, and those that are both, so
// that the tiles that have values at a position are neighbours.
template <int64_t most>
struct Group {
    Tile tiles[most];
    int64_t ends[4];  // of each kind

    Group(const Tensor& y, int64_t begin, int64_t count) {
        Tile found[most];
        int64_t next[4] = {};
        for (int64_t t = 0; t < count; ++t) {
            found[t] = Tile(y, begin + t);
            ++next[kind_of(found[t])];
        }
        for (int64_t kind = 0, filled = 0; kind < 4; ++kind) {
            ends[kind] = filled + next[kind];
            next[kind] = filled;
            filled = ends[kind];
        }
        for (int64_t t = 0; t < count; ++t) tiles[next[kind_of(found[t])]++] = found[t];
    }

    // Tiles with values at a row and a column of positions.
    void having(int64_t row, int64_t column, int64_t* from, int64_t* to) const {
        *from = in_short(column) ? 0 : ends[0];
        *to = !in_short(row) ? ends[1] : !in_short(column) ? ends[2] : ends[3];
    }

   private:
    static int kind_of(const Tile& tile) { return tile.narrow ? tile.low ? 3 : 0 : tile.low ? 2 : 1; }
};

// Transforms WORDS channels of a patch; `at` gives the channels of input (i, j).
template <bool low, bool narrow, class At>
FXQ_INLINE void transform_patch(const At& at, int16_t* to, int64_t step) {
    constexpr int LAST = low ? 3 : 5, COLUMNS = narrow ? 4 : 6;  // of the rows
    Six columns[PATCH];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
        const int k = j < COLUMNS ? j : 0;
        columns[j] = transform_inputs<low>({at(0, k), at(1, k), at(2, k), at(3, k), at(low ? LAST : 4, k), at(LAST, k)});
    }
    const auto row = [&](I Six::*i, int64_t number) {
        const Six t = transform_inputs<narrow>({columns[0].*i, columns[1].*i, columns[2].*i, columns[3].*i, columns[4].*i,
                                                columns[5].*i});
        int16_t* const p = to + number * PATCH * step;
        store_words(p, t.a), store_words(p + step, t.b), store_words(p + 2 * step, t.c);
        if (!narrow) store_words(p + 3 * step, t.d), store_words(p + 4 * step, t.e);
        store_words(p + 5 * step, t.f);
    };
    row(&Six::a, 0), row(&Six::b, 1), row(&Six::c, 2);
    if (!low) row(&Six::d, 3), row(&Six::e, 4);
    row(&Six::f, 5);
}

// Inputs of a tile to `to`, positions `step` numbers apart. `x`: the first input; taps beyond the last one that an output
// inside of the image reads are read from that one: what stands there does not matter.
template <bool low, bool narrow>
void transform_tile(const Tensor& x, const uint8_t* first, const Tile& tile, int16_t* to, int64_t step) {
    const uint8_t* rows[PATCH];
    int64_t columns[PATCH];
    for (int64_t i = 0; i < PATCH; ++i) {
        rows[i] = first + (i < tile.height + 2 ? i : tile.height + 1) * x.row_pitch;
        columns[i] = (i < tile.width + 2 ? i : tile.width + 1) * x.pixel_pitch;
    }
    int64_t c = 0;
    for (; c + WORDS <= x.channels; c += WORDS)
        transform_patch<low, narrow>([&](int i, int j) { return words(rows[i] + columns[j] + c); }, to + c, step);
    const int64_t left = x.channels - c;
    if (left)
        transform_patch<low, narrow>([&](int i, int j) { return words_partial(rows[i] + columns[j] + c, left); }, to + c,
                                     step);
}

// LANES channels of the sums of a tile, positions `step` bytes apart, to [row][column][32].
template <bool low, bool narrow>
FXQ_INLINE void transform_back(const uint8_t* sums, int64_t step, I start, int32_t* to) {
    const auto at = [&](int i, int j) { return load_int(reinterpret_cast<const int32_t*>(sums + (6 * i + j) * step)); };
    Four columns[PATCH];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
        const int k = narrow && !in_short(j) ? 0 : j;
        columns[j] = transform_sums<low>({at(0, k), at(1, k), at(2, k), at(low ? 0 : 3, k), at(low ? 0 : 4, k), at(5, k)});
    }
    const auto row = [&](I Four::*i, int64_t number) {
        const Four t = transform_sums<narrow>({columns[0].*i, columns[1].*i, columns[2].*i, columns[3].*i, columns[4].*i,
                                               columns[5].*i});
        int32_t* const p = to + number * TILE * BLOCK;
        store_int(p, add(unscaled(t.a), start)), store_int(p + BLOCK, add(unscaled(t.b), start));
        if (!narrow)
            store_int(p + 2 * BLOCK, add(unscaled(t.c), start)), store_int(p + 3 * BLOCK, add(unscaled(t.d), start));
    };
    row(&Four::a, 0), row(&Four::b, 1);
    if (!low) row(&Four::c, 2), row(&Four::d, 3);
}

template <bool is_low, bool is_narrow>
struct Sides {
    static constexpr bool low = is_low, narrow = is_narrow;
};

// Calls body(Sides) with the tile's sides as constants.
template <class Body>
FXQ_INLINE void with_sides(const Tile& tile, const Body& body) {
    if (tile.low) return tile.narrow ? body(Sides<true, true>()) : body(Sides<true, false>());
    return tile.narrow ? body(Sides<false, true>()) : body(Sides<false, false>());
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
