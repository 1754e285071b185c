// The order in which a program's operations run.
#ifndef FXQ_RUN_H
#define FXQ_RUN_H

#include "program.h"

namespace fxq {

// Calls execute(operation number, context) for every operation and chunk of `images` images, in order: an operation of
// level L runs on group[L] images, after those of lower levels have run on the same images in smaller chunks.
template <class Execute>
class Walk {
   public:
    Walk(const fxq_program& program, const Execute& execute) : program_(program), execute_(execute) {}

    void images(const Context& context, int64_t images) const {
        const int top = program_.header.levels - 1;
        const int64_t group = program_.header.group[top];
        Context chunk = context;
        for (int64_t done = 0; done < images; done += group) {
            chunk.call_image = context.call_image + done;
            chunk.first = 0;
            chunk.images = images - done < group ? images - done : group;
            operations(0, program_.header.operations, top, chunk);
        }
    }

   private:
    // Operations begin..end-1, none above `level`, on the images of `context`.
    void operations(int begin, int end, int level, const Context& context) const {
        while (begin < end) {
            if (level_of(begin) == level) {
                execute_(begin++, context);
                continue;
            }
            int stop = begin;
            while (stop < end && level_of(stop) < level) ++stop;
            const int64_t group = program_.header.group[level - 1];
            Context chunk = context;
            for (int64_t done = 0; done < context.images; done += group) {
                chunk.first = context.first + done;
                chunk.images = context.images - done < group ? context.images - done : group;
                operations(begin, stop, level - 1, chunk);
            }
            begin = stop;
        }
    }

    int level_of(int number) const { return program_.operations[static_cast<size_t>(number)].record.level; }

    const fxq_program& program_;
    const Execute& execute_;
};

template <class Execute>
void walk(const fxq_program& program, const Context& context, int64_t images, const Execute& execute) {
    Walk<Execute>(program, execute).images(context, images);
}

}  // namespace fxq
#endif
