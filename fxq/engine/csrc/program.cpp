// Creation and destruction of programs, and the queries of the C interface.
#include "program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "isa.h"

namespace fxq {

State::~State() {}

Buffer::~Buffer() { free(data_); }

bool Buffer::allocate(int64_t bytes) {
    free(data_);
    const size_t rounded = (static_cast<size_t>(bytes) + 127) / 64 * 64;
    data_ = aligned_alloc(64, rounded);
    bytes_ = data_ ? bytes : 0;
    if (data_) memset(data_, 0, rounded);
    return data_ != nullptr;
}

bool Buffer::copy(const void* data, int64_t bytes) {
    if (!allocate(bytes)) return false;
    if (bytes) memcpy(data_, data, static_cast<size_t>(bytes));
    return true;
}

namespace {

std::string input_types(fxq_program* program) {
    program->input_size.assign(static_cast<size_t>(program->header.inputs), 0);
    for (const Tensor& t : program->tensors) {
        if (t.place != FXQ_INPUT) continue;
        int64_t& size = program->input_size[static_cast<size_t>(t.index)];
        if (size && size != t.size) return "two tensors disagree about the type of an input";
        size = t.size;
    }
    return std::string();
}

std::string prepare(fxq_program* program) {
    int number = 0;
    for (Operation& op : program->operations) {
        char where[80];
        const Family* family = find_family(op.record.code);
        snprintf(where, sizeof where, "operation %d (%s): ", number++, family ? family->name : "unknown");
        if (!family) return std::string(where) + "the engine has no such operation";
        if (const char* why = family->check(op)) return std::string(where) + why;
        op.kernel = find_kernel(*family, program->isa);
        if (op.kernel->prepare)
            if (const char* why = op.kernel->prepare(op)) return std::string(where) + why;
        if (!op.state) continue;
        program->packed_bytes += op.state->packed_bytes;
        if (op.state->scratch_bytes > program->scratch_bytes) program->scratch_bytes = op.state->scratch_bytes;
    }
    return std::string();
}

std::string fill(fxq_program* program, const fxq_header* header, const fxq_tensor* tensors,
                 const fxq_operation* operations, const fxq_constant* constants, const char* isa) {
    program->isa = best_isa();
    if (isa && *isa && !isa_of(isa, &program->isa)) return "unknown instruction set";
    if (!isa_runs(program->isa)) return "this machine does not run the instruction set";
    program->header = *header;
    std::string why =
        validate(*header, tensors, operations, constants, &program->tensors, &program->operations);
    if (why.empty()) why = input_types(program);
    if (why.empty()) why = prepare(program);
    return why;
}

}  // namespace
}  // namespace fxq

fxq_program::~fxq_program() {
    for (fxq::Operation& op : operations) delete op.state;
}

extern "C" {

int fxq_abi_version(void) { return FXQ_ABI_VERSION; }

int fxq_runs(const char* name) {
    fxq::Isa isa;
    return name && fxq::isa_of(name, &isa) && fxq::isa_runs(isa);
}

fxq_program* fxq_create(const fxq_header* header, const fxq_tensor* tensors, const fxq_operation* operations,
                        const fxq_constant* constants, const char* isa, char* error, size_t error_size) {
    try {
        std::unique_ptr<fxq_program> program(new fxq_program);
        const std::string why = fxq::fill(program.get(), header, tensors, operations, constants, isa);
        if (why.empty()) return program.release();
        snprintf(error, error_size, "%s", why.c_str());
    } catch (const std::bad_alloc&) {
        snprintf(error, error_size, "out of memory");
    }
    return nullptr;
}

void fxq_destroy(fxq_program* program) { delete program; }

int64_t fxq_packed_bytes(const fxq_program* program) { return program->packed_bytes; }

}  // extern "C"
