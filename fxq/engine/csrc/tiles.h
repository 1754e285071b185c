// The tile instructions of AMX: eight tiles of 16 rows of 64 bytes. With FXQ_EMULATE_TILES they are computed in plain
// C++, so that machines without AMX test what stands on top of them.
#ifndef FXQ_TILES_H
#define FXQ_TILES_H

#include <stdint.h>
#include <string.h>

namespace fxq {
namespace amx {

#if defined(FXQ_EMULATE_TILES)

struct Tiles {
    uint8_t bytes[8][16][64];
    bool open;
};
inline Tiles& tiles() {
    static thread_local Tiles all;
    return all;
}
inline void open_tiles() { tiles().open = true; }
inline void close_tiles() { tiles().open = false; }
template <int tile>
inline void load_tile(const void* p, int64_t stride) {
    for (int64_t i = 0; i < 16; ++i)
        memcpy(tiles().bytes[tile][i], static_cast<const uint8_t*>(p) + i * stride, tiles().open ? 64 : 0);
}
template <int tile>
inline void store_tile(void* p, int64_t stride) {
    for (int64_t i = 0; i < 16; ++i) memcpy(static_cast<uint8_t*>(p) + i * stride, tiles().bytes[tile][i], 64);
}
// sums += rows of u8 times columns of s8, four at a time.
template <int sums, int a, int b>
inline void dot_tiles() {
    for (int i = 0; i < 16; ++i) {
        int32_t row[16];
        memcpy(row, tiles().bytes[sums][i], 64);
        for (int k = 0; k < 16; ++k) {
            const uint8_t* const x = tiles().bytes[a][i] + 4 * k;
            const uint8_t* const w = tiles().bytes[b][k];
            for (int j = 0; j < 64; ++j) row[j / 4] += int32_t(x[j % 4]) * static_cast<int8_t>(w[j]);
        }
        memcpy(tiles().bytes[sums][i], row, 64);
    }
}

#else

// g++ 12 miscompiles its own intrinsic for the configuration, and its tile loads do not order memory: assembly.
struct alignas(64) Configuration {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline void open_tiles() {
    static const Configuration configuration;
    __asm__ volatile("ldtilecfg %0" ::"m"(configuration) : "memory");
}
inline void close_tiles() { __asm__ volatile("tilerelease" ::: "memory"); }

template <int tile>
inline void load_tile(const void* p, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
inline void store_tile(void* p, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(tile) : "memory");
}
template <int sums, int a, int b>
inline void dot_tiles() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(a), "i"(b));
}

#endif

}  // namespace amx
}  // namespace fxq
#endif
