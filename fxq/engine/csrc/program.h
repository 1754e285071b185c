// A checked program with everything that its operations prepared.
#ifndef FXQ_PROGRAM_H
#define FXQ_PROGRAM_H

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "arena.h"
#include "kernel.h"

namespace fxq {

// Checks the header, every tensor and the references of every operation; fills `tensors` and `operations` (without
// states and kernels). Returns an empty string, or what is wrong.
std::string validate(const fxq_header& header, const fxq_tensor* tensors, const fxq_operation* operations,
                     const fxq_constant* constants, std::vector<Tensor>* checked, std::vector<Operation>* operations_out);

}  // namespace fxq

struct fxq_program {
    fxq_header header;
    fxq::Isa isa = fxq::ISA_PORTABLE;
    std::vector<fxq::Tensor> tensors;
    std::vector<fxq::Operation> operations;
    std::vector<int64_t> input_size;  // bytes of an element of each input
    int64_t scratch_bytes = 0;
    int64_t packed_bytes = 0;
    fxq::Store store;
    std::atomic<int64_t> pace{int64_t(1) << 32};  // nanoseconds of an image on one thread, as the last call had it

    fxq_program() = default;
    fxq_program(const fxq_program&) = delete;
    fxq_program& operator=(const fxq_program&) = delete;
    ~fxq_program();
};

#endif
