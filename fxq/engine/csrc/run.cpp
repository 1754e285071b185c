#include "run.h"

#include <stdio.h>

#include <chrono>
#include <new>

#include "arena.h"

namespace fxq {
namespace {

struct Walk {
    const fxq_program& program;
    Executor* executor;

    // Operations begin..end-1, none above `level`, on the images of `context`.
    void operator()(int begin, int end, int level, const Context& context) const {
        const std::vector<Operation>& operations = program.operations;
        while (begin < end) {
            if (operations[begin].record.level == level) {
                executor->execute(begin++, context);
                continue;
            }
            int stop = begin;
            while (stop < end && operations[stop].record.level < level) ++stop;
            const int64_t group = program.header.group[level - 1];
            Context chunk = context;
            for (int64_t done = 0; done < context.images; done += group) {
                chunk.first = context.first + done;
                chunk.images = context.images - done < group ? context.images - done : group;
                (*this)(begin, stop, level - 1, chunk);
            }
            begin = stop;
        }
    }
};

// One thread does everything.
class Alone final : public Executor {
   public:
    Alone(const fxq_program& program, double* seconds) : program_(program), seconds_(seconds) {}

    void execute(int number, const Context& context) override {
        const Operation& op = program_.operations[static_cast<size_t>(number)];
        const auto start = std::chrono::steady_clock::now();
        const int64_t tasks = op.kernel->tasks(op, context.images, 1);
        op.kernel->run(op, context, tasks, 0, tasks);
        if (!seconds_) return;
        seconds_[number] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }

   private:
    const fxq_program& program_;
    double* seconds_;
};

}  // namespace

void walk(const fxq_program& program, const Context& context, int64_t images, Executor* executor) {
    const int top = program.header.levels - 1;
    const int64_t group = program.header.group[top];
    Context chunk = context;
    for (int64_t done = 0; done < images; done += group) {
        chunk.call_image = context.call_image + done;
        chunk.first = 0;
        chunk.images = images - done < group ? images - done : group;
        Walk{program, executor}(0, program.header.operations, top, chunk);
    }
}

}  // namespace fxq

extern "C" {

int fxq_run(fxq_program* program, const fxq_input* inputs, void* const* outputs, int64_t images, int threads,
            double* seconds, char* error, size_t error_size) {
    (void)threads;
    try {
        fxq::Arena arena;
        if (!arena.allocate(program->header.arena_bytes, program->scratch_bytes)) throw std::bad_alloc();
        std::vector<fxq_input> in_bytes(inputs, inputs + program->header.inputs);
        for (size_t i = 0; i < in_bytes.size(); ++i)
            for (int64_t& stride : in_bytes[i].strides) stride *= program->input_size[i];
        fxq::Context context{arena.block(), in_bytes.data(), outputs, 0, 0, images, arena.scratch()};
        fxq::Alone alone(*program, seconds);
        fxq::walk(*program, context, images, &alone);
        return 0;
    } catch (const std::bad_alloc&) {
        snprintf(error, error_size, "out of memory");
        return 1;
    }
}

int64_t fxq_held_bytes(const fxq_program* program) {
    (void)program;
    return 0;
}

}  // extern "C"
