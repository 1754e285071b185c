#include "arena.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fxq {
namespace {

constexpr int64_t HUGE_PAGE = 2 << 20;

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

Arena::~Arena() { free(base_); }

bool Arena::allocate(int64_t arena_bytes) {
    const int64_t wanted = FRONT_SLACK + arena_bytes + BACK_SLACK;
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
    memset(base_, 0, static_cast<size_t>(wanted));  // the first run shall not wait for pages
    block_ = static_cast<uint8_t*>(base_) + FRONT_SLACK;
    return true;
}

void Memory::prepare(int threads, int64_t counters, int64_t operations) {
    operations_ = operations;
    seconds_.assign(static_cast<size_t>(threads * operations), 0.0);
    while (parts_.size() < static_cast<size_t>(threads)) parts_.push_back(std::make_unique<Part>());
    if (counters > counter_room_) {
        counters_ = std::make_unique<Counter[]>(static_cast<size_t>(counters));
        counter_room_ = counters;
        return;
    }
    for (int64_t i = 0; i < counters; ++i) counters_[static_cast<size_t>(i)].value.store(0, std::memory_order_relaxed);
}

void Memory::add_seconds(double* sums) const {
    const size_t operations = static_cast<size_t>(operations_);
    double took_part = 0.0;
    for (size_t i = 0; i < seconds_.size(); i += operations)
        took_part += std::any_of(&seconds_[i], &seconds_[i] + operations, [](double s) { return s > 0.0; });
    for (size_t i = 0; i < seconds_.size(); ++i)
        if (took_part > 0.0) sums[i % operations] += seconds_[i] / took_part;
}

uint8_t* Memory::block(int thread) {
    Part& part = *parts_[static_cast<size_t>(thread)];
    if (!part.arena.block() && part.arena.allocate(arena_bytes_)) bytes_.fetch_add(part.arena.bytes());
    return part.arena.block();
}

uint8_t* Memory::scratch(int thread) {
    Part& part = *parts_[static_cast<size_t>(thread)];
    if (!part.scratch.as<uint8_t>() && part.scratch.allocate(scratch_bytes_)) bytes_.fetch_add(scratch_bytes_);
    return part.scratch.as<uint8_t>();
}

std::unique_ptr<Memory> Store::take(int64_t arena_bytes, int64_t scratch_bytes) {
    // After a fork the lock may be held by a thread that does not exist here: then there is nothing to reuse.
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock.owns_lock() && !free_.empty()) {
        std::unique_ptr<Memory> memory = std::move(free_.back());
        free_.pop_back();
        return memory;
    }
    return std::make_unique<Memory>(arena_bytes, scratch_bytes);
}

void Store::give(std::unique_ptr<Memory> memory) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock.owns_lock() && free_.size() < MOST) free_.push_back(std::move(memory));
}

int64_t Store::bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    int64_t sum = 0;
    for (const std::unique_ptr<Memory>& memory : free_) sum += memory->bytes();
    return sum;
}

}  // namespace fxq
