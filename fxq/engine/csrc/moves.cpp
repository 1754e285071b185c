// Operations that move or replace elements: COPY, LOOKUP.
#include <new>

#include "bytes.h"
#include "rows.h"

namespace fxq {
namespace FXQ_NS {
namespace {

constexpr int64_t LEAST = 32768;  // bytes of a task

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const Tensor& y = *op.output;
    return split(images * y.height, y.size * y.width * y.channels, LEAST, threads);
}

void copy(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const int64_t size = op.output->size;
    each_run(op, context, tasks, begin, end,
             [&](const uint8_t* from, uint8_t* to, int64_t count) { copy_bytes(to, from, count * size); });
}

using LookUp = void (*)(const uint8_t* table, const uint8_t* from, uint8_t* to, int64_t count);

struct Table final : State {
    alignas(64) uint8_t codes[256];
    LookUp look_up;
};

void look_up(const uint8_t* table, const uint8_t* from, uint8_t* to, int64_t count) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        uint8_t codes[8];
        for (int k = 0; k < 8; ++k) codes[k] = table[from[i + k]];
        memcpy(to + i, codes, 8);
    }
    for (; i < count; ++i) to[i] = table[from[i]];
}

#if defined(FXQ_AVX512VNNI)

// Two tables of 128 entries, chosen by the highest bit. Machines with VNNI but without VBMI exist.
struct Permute {
    __m512i part[4];

    __attribute__((target("avx512vbmi"))) B operator()(B v) const {
        const B low = _mm512_permutex2var_epi8(part[0], v, part[1]);
        const B high = _mm512_permutex2var_epi8(part[2], v, part[3]);
        return _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), low, high);
    }
};

__attribute__((target("avx512vbmi"))) void permute_all(const uint8_t* table, const uint8_t* from, uint8_t* to,
                                                       int64_t count) {
    const Permute look{{load_bytes(table), load_bytes(table + 64), load_bytes(table + 128), load_bytes(table + 192)}};
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) store_bytes(to + i, look(load_bytes(from + i)));
    if (i < count) store_bytes(to + i, look(load_bytes(from + i, count - i)), count - i);
}

LookUp best() { return __builtin_cpu_supports("avx512vbmi") ? permute_all : look_up; }

#else

LookUp best() { return look_up; }

#endif

const char* prepare_lookup(Operation& op) {
    Table* table = new (std::nothrow) Table;
    op.state = table;
    if (!table) return "no memory";
    memcpy(table->codes, op.constant[0].data, 256);
    table->look_up = best();
    return nullptr;
}

void lookup(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const Table& table = *static_cast<const Table*>(op.state);
    each_run(op, context, tasks, begin, end, [&](const uint8_t* from, uint8_t* to, int64_t count) {
        table.look_up(table.codes, from, to, count);
    });
}

}  // namespace

extern const Kernel copy_kernel = {nullptr, tasks, copy};
extern const Kernel lookup_kernel = {prepare_lookup, tasks, lookup};

}  // namespace FXQ_NS
}  // namespace fxq
