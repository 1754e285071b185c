// Running a program: the order of operations and chunks.
#ifndef FXQ_RUN_H
#define FXQ_RUN_H

#include "program.h"

namespace fxq {

// Hands the work of one operation on one chunk to whoever does it.
class Executor {
   public:
    virtual void execute(int operation, const Context& context) = 0;

   protected:
    ~Executor() = default;
};

// Calls `executor` for every operation and chunk of `images` images, in order: an operation of level L runs on
// group[L] images, after those of lower levels have run on the same images in smaller chunks.
void walk(const fxq_program& program, const Context& context, int64_t images, Executor* executor);

}  // namespace fxq
#endif
