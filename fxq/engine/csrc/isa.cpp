#include "isa.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fxq {
namespace {

const char* const NAMES[ISA_COUNT] = {"portable", "avx2", "avxvnni", "avx512vnni", "amx"};

#if defined(__x86_64__)

struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Leaf leaf(unsigned number, unsigned part) {
    Leaf l;
    if (!__get_cpuid_count(number, part, &l.a, &l.b, &l.c, &l.d)) return Leaf();
    return l;
}

bool bit(unsigned word, int n) { return (word >> n) & 1; }

// The register state that the operating system saves (XCR0).
uint64_t saved_state() {
    if (!bit(leaf(1, 0).c, 27)) return 0;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

bool has_avx2() {
    const Leaf one = leaf(1, 0), seven = leaf(7, 0);
    return (saved_state() & 6) == 6 && bit(one.c, 28) && bit(one.c, 12) && bit(seven.b, 5);
}

bool has_avx_vnni() { return has_avx2() && leaf(7, 0).a >= 1 && bit(leaf(7, 1).a, 4); }

// F, DQ, BW, VL and VNNI, with opmask and zmm state saved.
bool has_avx512_vnni() {
    const Leaf seven = leaf(7, 0);
    return has_avx2() && (saved_state() & 0xe6) == 0xe6 && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) &&
           bit(seven.b, 31) && bit(seven.c, 11);
}

#if defined(FXQ_WITH_AMX)
// Linux gives a process the tile registers only when it asks (once; the answer holds for all of its threads).
bool may_use_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    static const bool granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    return granted;
#else
    return false;
#endif
}

bool has_amx() {
#if defined(FXQ_EMULATE_TILES)
    return has_avx512_vnni();
#endif
    const Leaf seven = leaf(7, 0);
    return has_avx512_vnni() && (saved_state() & 0x60000) == 0x60000 && bit(seven.d, 24) && bit(seven.d, 25) &&
           may_use_tiles();
}
#endif

#endif

}  // namespace

const char* isa_name(Isa isa) { return NAMES[isa]; }

bool isa_of(const char* name, Isa* isa) {
    for (int i = 0; i < ISA_COUNT; ++i) {
        if (strcmp(name, NAMES[i]) == 0) {
            *isa = static_cast<Isa>(i);
            return true;
        }
    }
    return false;
}

bool isa_runs(Isa isa) {
#if defined(__x86_64__)
    switch (isa) {
        case ISA_PORTABLE: return true;
        case ISA_AVX2: return has_avx2();
        case ISA_AVXVNNI: return has_avx_vnni();
        case ISA_AVX512VNNI: return has_avx512_vnni();
#if defined(FXQ_WITH_AMX)
        case ISA_AMX: return has_amx();
#endif
        default: return false;
    }
#else
    return isa == ISA_PORTABLE;
#endif
}

Isa best_isa() {
    for (int i = ISA_COUNT - 1; i > 0; --i)
        if (isa_runs(static_cast<Isa>(i))) return static_cast<Isa>(i);
    return ISA_PORTABLE;
}

}  // namespace fxq
