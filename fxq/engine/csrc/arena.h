// What one thread needs to run chunks of a program: an arena block with slack on both sides, and scratch.
#ifndef FXQ_ARENA_H
#define FXQ_ARENA_H

#include "kernel.h"

namespace fxq {

class Arena {
   public:
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena();
    bool allocate(int64_t arena_bytes, int64_t scratch_bytes);
    uint8_t* block() const { return block_; }
    uint8_t* scratch() const { return scratch_; }
    int64_t bytes() const { return mapped_; }

   private:
    void* base_ = nullptr;
    int64_t mapped_ = 0;
    uint8_t* block_ = nullptr;
    uint8_t* scratch_ = nullptr;
};

}  // namespace fxq
#endif
