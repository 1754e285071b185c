// The interface between the program (creation, validation, threads) and the kernels.
//
// A kernel source that depends on the instruction set is compiled once for each; what it defines stands in the
// namespace FXQ_NS (see vec.h), so that no function compiled for one machine can be linked into the code for another.
// For the same reason such sources use no standard containers.
#ifndef FXQ_KERNEL_H
#define FXQ_KERNEL_H

#include "abi.h"

namespace fxq {

enum Isa { ISA_PORTABLE = 0, ISA_AVX2 = 1, ISA_AVXVNNI = 2, ISA_AVX512VNNI = 3, ISA_AMX = 4, ISA_COUNT = 5 };

// Bytes that may be read (never written) before and behind an arena block. What is read there must not matter.
constexpr int64_t FRONT_SLACK = 4096;
constexpr int64_t BACK_SLACK = 131072;

// Memory aligned to 64 bytes, zeroed; freed with its owner.
class Buffer {
   public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer();
    // False without memory. What the buffer held before is lost.
    bool allocate(int64_t bytes);
    bool copy(const void* data, int64_t bytes);
    template <class T>
    T* as() const {
        return static_cast<T*>(data_);
    }
    int64_t bytes() const { return bytes_; }

   private:
    void* data_ = nullptr;
    int64_t bytes_ = 0;
};

// What a kernel prepared for one operation on creation (packed weights, tables). Derive from it.
struct State {
    virtual ~State();
    int64_t packed_bytes = 0;   // for fxq_packed_bytes
    int64_t scratch_bytes = 0;  // of Context::scratch that `run` uses
};

struct Tensor : fxq_tensor {
    int64_t group;  // images of a full chunk of its level
    int64_t size;   // bytes of an element
};

// A constant of the program: valid only until creation ends, so a kernel copies what it needs into its state.
struct Constant {
    const void* data = nullptr;
    int64_t bytes = 0;
    template <class T>
    const T* as() const {
        return static_cast<const T*>(data);
    }
};

struct Kernel;

struct Operation {
    fxq_operation record;
    const Tensor* input[FXQ_MAX_INPUTS];  // nullptr where absent
    const Tensor* output;
    Constant constant[FXQ_MAX_CONSTANTS];
    State* state;  // owned by the program
    const Kernel* kernel;
};

// One chunk of images in the hands of one thread.
struct Context {
    uint8_t* arena;           // the block that holds the arena values
    const fxq_input* inputs;  // strides already in bytes
    void* const* outputs;
    int64_t call_image;  // image of the call that is image 0 of the block
    int64_t first;       // first image of the chunk, counted from image 0 of the block
    int64_t images;      // images of the chunk
    uint8_t* scratch;    // of the running thread, 64-byte aligned
};

// Address of element (n, 0, 0, 0) of an arena or output value, n counted from the first image of the chunk.
inline uint8_t* address(const Context& context, const Tensor& tensor, int64_t n = 0) {
    if (tensor.place == FXQ_ARENA)
        return context.arena + tensor.offset + (context.first % tensor.group + n) * tensor.image_pitch;
    return static_cast<uint8_t*>(context.outputs[tensor.index]) + tensor.offset +
           (context.call_image + context.first + n) * tensor.image_pitch;
}

// Address of element (n, 0, 0, 0) of an input of the call; its strides are context.inputs[tensor.index].strides.
inline const uint8_t* input_address(const Context& context, const Tensor& tensor, int64_t n = 0) {
    const fxq_input& input = context.inputs[tensor.index];
    return static_cast<const uint8_t*>(input.data) + (context.call_image + context.first + n) * input.strides[0];
}

// One operation on one instruction set. All functions are called with a checked operation.
struct Kernel {
    // Makes op.state (or leaves nullptr). Returns nullptr, or why the operation cannot be prepared.
    const char* (*prepare)(Operation& op);
    // How many pieces the work on `images` images is cut into for `threads` threads; pieces are about equal and are
    // never so small that handing them out matters (some microseconds). The same for the same arguments.
    int64_t (*tasks)(const Operation& op, int64_t images, int threads);
    // Does the pieces begin..end-1 of `tasks`. Other threads do the others at the same time.
    void (*run)(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end);
};

// Checks an operation's own fields against each other and its tensors (shapes, types, ints, sizes of constants, taps
// within halos). The tensors themselves have been checked: every element and halo element of an arena tensor lies inside
// of the arena. Returns nullptr or a sentence without the operation's name.
using Check = const char* (*)(const Operation& op);

struct Family {
    int32_t code;
    const char* name;
    Check check;
    const Kernel* kernels[ISA_COUNT];  // ISA_AMX falls back to AVX512VNNI, that to AVX2, any to PORTABLE, where nullptr
};

// nullptr for an unknown code.
const Family* find_family(int32_t code);
const Kernel* find_kernel(const Family& family, Isa isa);

// Pieces of equal cost: piece `i` of `count` is lines begin..end-1 of `lines`.
inline void piece(int64_t lines, int64_t count, int64_t i, int64_t* begin, int64_t* end) {
    *begin = lines * i / count;
    *end = lines * (i + 1) / count;
}

// The usual answer of `tasks`: `lines` lines (rows of all images) of `cost` bytes or operations each, several pieces a
// thread for balance, as many for each, none below `least`.
inline int64_t split(int64_t lines, int64_t cost, int64_t least, int threads) {
    if (threads <= 1) return 1;
    int64_t pieces = lines * cost / (least > 0 ? least : 1);
    const int64_t wanted = 4 * static_cast<int64_t>(threads);
    if (pieces > wanted) pieces = wanted;
    if (pieces > lines) pieces = lines;
    if (pieces > threads) pieces -= pieces % threads;
    return pieces < 1 ? 1 : pieces;
}

}  // namespace fxq
#endif
