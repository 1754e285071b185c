// One call of a program: images by threads first, then the rest of the images by tasks of each operation.
#include "run.h"

#include <stdio.h>

#include <new>

#include "team.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fxq {
namespace {

// Round to nearest, no flushing of subnormal numbers: whatever the caller's thread is set to.
class Rounding {
   public:
#if defined(__x86_64__)
    Rounding() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~Rounding() { _mm_setcsr(before_); }
    Rounding(const Rounding&) = delete;
    Rounding& operator=(const Rounding&) = delete;

   private:
    const unsigned before_;
#endif
};

class Call final : public Work {
   public:
    Call(const fxq_program& program, Memory* memory, const Context& context, int64_t images, int threads, bool timed)
        : program_(program), memory_(memory), context_(context), threads_(threads), timed_(timed) {
        each_ = threads > 1 ? images / threads : images;
        rest_ = images - each_ * threads;
        const int64_t group = program.header.group[program.header.levels - 1];
        chunk_ = each_ < group ? each_ : group;
        chunks_ = chunk_ ? (each_ + chunk_ - 1) / chunk_ * threads : 0;
        walk(program, context, rest_, [&](int, const Context&) { ++executions_; });
    }

    // One for the claimed and one for the finished chunks; then for each execution one a thread and one for the
    // finished tasks.
    int64_t counters() const { return 2 + executions_ * (threads_ + 1); }

    // Nanoseconds that the threads have spent in it together.
    int64_t spent() const { return spent_.load(std::memory_order_relaxed); }

    void take_part(int thread) override {
        const int64_t start = Pool::now();
        all_images(thread);
        spent_.fetch_add(Pool::now() - start, std::memory_order_relaxed);
    }

   private:
    void all_images(int thread) {
        const Rounding rounding;
        Context context = context_;
        context.scratch = memory_->scratch(thread);
        if (!context.scratch) return;  // the caller has its own
        if (chunks_) whole_images(thread, context);
        context.arena = memory_->block(0);
        if (executions_) by_tasks(thread, context);
    }

    void whole_images(int thread, Context context) {
        Counter *const claimed = memory_->counters(), *const finished = claimed + 1;
        const int64_t parts = chunks_ / threads_;
        context.arena = memory_->block(thread);
        while (context.arena) {
            const int64_t number = claimed->value.fetch_add(1);
            if (number >= chunks_) break;
            const int64_t begin = number % parts * chunk_, left = each_ - begin;
            context.call_image = number / parts * each_ + begin;
            walk(program_, context, left < chunk_ ? left : chunk_, [&](int operation, const Context& chunk) {
                const Operation& op = program_.operations[static_cast<size_t>(operation)];
                const int64_t tasks = op.kernel->tasks(op, chunk.images, 1);
                do_tasks(operation, chunk, thread, tasks, 0, tasks);
            });
            finished->value.fetch_add(1);
        }
        Spin spin;
        while (finished->value.load() < chunks_) spin.wait();
    }

    void do_tasks(int operation, const Context& context, int thread, int64_t tasks, int64_t begin, int64_t end) const {
        const Operation& op = program_.operations[static_cast<size_t>(operation)];
        if (!timed_) return op.kernel->run(op, context, tasks, begin, end);
        const int64_t start = Pool::now();
        op.kernel->run(op, context, tasks, begin, end);
        memory_->seconds(thread)[operation] += static_cast<double>(Pool::now() - start) * 1e-9;
    }

    void by_tasks(int thread, Context context) {
        context.call_image = context_.call_image + each_ * threads_;
        Counter* slot = memory_->counters() + 2;
        walk(program_, context, rest_, [&](int operation, const Context& chunk) {
            execute(operation, chunk, thread, slot);
            slot += threads_ + 1;
        });
    }

    // A thread does the tasks of its own range, then what is left of the others'. Who comes late finds nothing left.
    void execute(int operation, const Context& context, int thread, Counter* slot) const {
        const Operation& op = program_.operations[static_cast<size_t>(operation)];
        const int64_t tasks = op.kernel->tasks(op, context.images, threads_);
        if (threads_ == 1) return do_tasks(operation, context, thread, tasks, 0, tasks);
        Counter* const finished = slot + threads_;
        if (finished->value.load(std::memory_order_acquire) == tasks) return;
        int64_t done = 0;
        for (int i = 0; i < threads_; ++i) {
            const int owner = (thread + i) % threads_;
            int64_t begin, end;
            piece(tasks, threads_, owner, &begin, &end);
            for (;;) {
                if (slot[owner].value.load(std::memory_order_relaxed) >= end - begin) break;
                const int64_t number = begin + slot[owner].value.fetch_add(1);
                if (number >= end) break;
                do_tasks(operation, context, thread, tasks, number, number + 1);
                ++done;
            }
        }
        if (done) finished->value.fetch_add(done, std::memory_order_acq_rel);
        Spin spin;
        while (finished->value.load(std::memory_order_acquire) < tasks) spin.wait();
    }

    const fxq_program& program_;
    Memory* const memory_;
    const Context context_;
    const int threads_;
    const bool timed_;
    int64_t each_, rest_, chunk_, chunks_;
    int64_t executions_ = 0;
    std::atomic<int64_t> spent_{0};
};

void run(fxq_program* program, const fxq_input* inputs, void* const* outputs, int64_t images, int threads,
         double* seconds) {
    constexpr int SMALL = 8;
    fxq_input few[SMALL];
    std::vector<fxq_input> many(program->header.inputs > SMALL ? static_cast<size_t>(program->header.inputs) : 0);
    fxq_input* const in_bytes = many.empty() ? few : many.data();
    for (int i = 0; i < program->header.inputs; ++i) {
        in_bytes[i] = inputs[i];
        for (int64_t& stride : in_bytes[i].strides) stride *= program->input_size[static_cast<size_t>(i)];
    }
    Pool& pool = Pool::instance();
    const bool team = threads > 1 && team_spins();
    if (threads > 1 && !team && !pool.worth(program->pace.load(std::memory_order_relaxed) * images)) threads = 1;
    std::unique_ptr<Memory> memory = program->store.take(program->header.arena_bytes, program->scratch_bytes);
    const Context context{nullptr, in_bytes, outputs, 0, 0, images, nullptr};
    Call call(*program, memory.get(), context, images, threads, seconds != nullptr);
    memory->prepare(threads, call.counters(), seconds ? program->header.operations : 0);
    if (!memory->block(0) || !memory->scratch(0)) throw std::bad_alloc();
    if (threads == 1 || !(team ? run_on_team(&call, threads) : pool.run(&call, threads))) call.take_part(0);
    pool.finished();
    program->pace.store(call.spent() / images, std::memory_order_relaxed);
    if (seconds) memory->add_seconds(seconds);
    program->store.give(std::move(memory));
}

}  // namespace
}  // namespace fxq

extern "C" {

int fxq_run(fxq_program* program, const fxq_input* inputs, void* const* outputs, int64_t images, int threads,
            double* seconds, char* error, size_t error_size) {
    if (images <= 0) return 0;
    if (threads < 1) threads = 1;
    if (threads > 256) threads = 256;
    try {
        fxq::run(program, inputs, outputs, images, threads, seconds);
        return 0;
    } catch (const std::bad_alloc&) {
        snprintf(error, error_size, "out of memory");
        return 1;
    }
}

int64_t fxq_held_bytes(const fxq_program* program) { return program->store.bytes(); }

}  // extern "C"
