#include "arena.h"

#include <stdlib.h>
#include <string.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fxq {
namespace {

constexpr int64_t HUGE_PAGE = 2 << 20;

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

Arena::~Arena() { free(base_); }

bool Arena::allocate(int64_t arena_bytes, int64_t scratch_bytes) {
    const int64_t behind = FRONT_SLACK + round_up(arena_bytes, 64) + BACK_SLACK;
    const int64_t wanted = behind + round_up(scratch_bytes, 64) + 64;
    const int64_t unit = wanted >= HUGE_PAGE ? HUGE_PAGE : 4096;
    mapped_ = round_up(wanted, unit);
    base_ = aligned_alloc(static_cast<size_t>(unit), static_cast<size_t>(mapped_));
    if (!base_) {
        mapped_ = 0;
        return false;
    }
#if defined(__linux__)
    if (unit == HUGE_PAGE) madvise(base_, static_cast<size_t>(mapped_), MADV_HUGEPAGE);
#endif
    memset(base_, 0, static_cast<size_t>(mapped_));  // the first run shall not wait for pages
    block_ = static_cast<uint8_t*>(base_) + FRONT_SLACK;
    scratch_ = static_cast<uint8_t*>(base_) + behind;
    return true;
}

}  // namespace fxq
