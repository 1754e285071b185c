// The plain C interface between the plan (made in Python) and the kernels.
//
// A program is data: values (tensors), operations in order, constants. Everything is little-endian and has a fixed
// size; fxq/engine/abi.py holds the same layout and a test compares the two.
#ifndef FXQ_ABI_H
#define FXQ_ABI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FXQ_ABI_VERSION 2

enum fxq_type { FXQ_U8 = 0, FXQ_F32 = 1 };

// Where a value lies. Arena values are placed by the plan; inputs and outputs belong to the caller.
enum fxq_place { FXQ_ARENA = 0, FXQ_INPUT = 1, FXQ_OUTPUT = 2 };

// A value of shape (images, height, width, channels). Element (n, y, x, c) lies at
//   base + offset + n * image_pitch + y * row_pitch + x * pixel_pitch + c * channel_pitch      (all in bytes)
// where base is the arena block of the running thread, or the caller's tensor. For an arena value n counts from the first image of the running
// chunk of the value's level; for inputs and outputs it counts from the first image of the call.
// An arena value may have a halo: `top` rows above, `bottom` below, `left` and `right` columns, addressed by negative
// or too large y and x. Whoever writes the value also writes `fill` into its whole halo (only its own channels).
// Strides of an FXQ_INPUT are given with each call (element strides of the caller's tensor); the pitches stored here are ignored.
typedef struct {
    int64_t offset;
    int64_t image_pitch, row_pitch, pixel_pitch, channel_pitch;
    int32_t height, width, channels;
    int32_t type;
    int32_t place;
    int32_t index;  // which input or output of the call
    int32_t level;  // arena values: the level whose chunk of images the value holds
    int32_t top, left, bottom, right;
    int32_t fill;
} fxq_tensor;

// Operations. Their fields are described in operations.md beside this file's sources, one section each.
enum fxq_code {
    FXQ_LOAD = 1,         // input -> arena: quantise float32, or copy u8 / float32; any strides
    FXQ_STORE = 2,        // arena -> output: dequantise u8, or copy
    FXQ_CONV = 3,         // dense or grouped convolution, linear layer
    FXQ_DEPTHWISE = 4,    // one input channel an output channel
    FXQ_LOOKUP = 5,       // table of 256 codes
    FXQ_COPY = 6,         // move elements between differently strided views
    FXQ_ADD = 7,          // broadcast addition, activation, requantise
    FXQ_MUL = 8,          // broadcast multiplication, activation, requantise
    FXQ_MAX_POOL = 9,
    FXQ_AVG_POOL = 10,
    FXQ_RESIZE = 11,      // nearest or bilinear
    FXQ_QUANTISE = 12,    // arena float32 -> arena u8
    FXQ_DEQUANTISE = 13,  // arena u8 -> arena float32
    FXQ_LAYER_NORM = 14,  // float32 -> float32 or u8, over channels
    FXQ_SOFTMAX = 15,     // over channels
    FXQ_ATTENTION = 16,   // softmax(q k^T * scale + mask) v, by heads
    FXQ_ADD_F32 = 17,     // broadcast addition of float32 values
    FXQ_UNARY_F32 = 18,   // an activation of float32 values
    FXQ_ATTENTION_U8 = 19, // attention of codes: both products of bytes
    FXQ_RMS_NORM = 20     // float32 -> float32 or u8, over channels
};

// An activation applied to real values, see epilogue.h for the exact arithmetic.
enum fxq_function {
    FXQ_IDENTITY = 0,  // clamps (relu, relu6, hardtanh) are identity with code limits
    FXQ_SILU = 1,
    FXQ_SIGMOID = 2,
    FXQ_TANH = 3,
    FXQ_GELU = 4,       // by erf
    FXQ_GELU_TANH = 5,
    FXQ_HARDSWISH = 6,
    FXQ_HARDSIGMOID = 7,
    FXQ_LEAKY_RELU = 8,  // floats: slope
    FXQ_ELU = 9,         // floats: alpha
    FXQ_CLIP = 10,       // floats: lowest, highest (float32 results only)
    FXQ_MISH = 11
};

#define FXQ_MAX_INPUTS 4
#define FXQ_MAX_INTS 32
#define FXQ_MAX_FLOATS 16
#define FXQ_MAX_CONSTANTS 8

typedef struct {
    int32_t code;
    int32_t level;
    int32_t inputs[FXQ_MAX_INPUTS];  // tensor numbers, -1 where absent
    int32_t output;
    int32_t ints[FXQ_MAX_INTS];
    float floats[FXQ_MAX_FLOATS];
    int32_t constants[FXQ_MAX_CONSTANTS];  // constant numbers, -1 where absent
} fxq_operation;

// Levels: images are worked through in chunks; level 0 has the smallest. An operation of level L runs on `group[L]`
// images at once, after the operations of level L-1 have run on the same images in chunks of `group[L-1]`.
// group[L] is a multiple of group[L-1]. `arena_bytes` is one thread's block for full chunks, slack not counted.
typedef struct {
    int32_t version;
    int32_t levels;
    int32_t group[8];
    int32_t tensors, operations, constants, inputs, outputs;
    int32_t reserved;
    int64_t arena_bytes;
} fxq_header;

typedef struct {
    const void* data;
    int64_t bytes;
} fxq_constant;

typedef struct {
    const void* data;
    int64_t strides[4];  // of (image, row, column, channel), in elements
} fxq_input;

typedef struct fxq_program fxq_program;

#pragma GCC visibility push(default)

int fxq_abi_version(void);
// 1 where this machine (and operating system) runs the instruction set: "portable", "avx2", "avxvnni", "avx512vnni", "amx".
int fxq_runs(const char* isa);
// Copies and packs everything it needs; the arguments may be freed afterwards. NULL with a message on error: every field is
// checked, so that no program that was accepted can read or write outside its arena, constants, inputs and outputs.
fxq_program* fxq_create(const fxq_header* header, const fxq_tensor* tensors, const fxq_operation* operations,
                        const fxq_constant* constants, const char* isa, char* error, size_t error_size);
void fxq_destroy(fxq_program* program);
// 0 on success. Safe to call from several threads at once. To `seconds`, when not NULL, the time spent in each operation
// is added: the mean of the threads that took part.
int fxq_run(fxq_program* program, const fxq_input* inputs, void* const* outputs, int64_t images, int threads,
            double* seconds, char* error, size_t error_size);
// Names the OpenMP runtime of the process, by its GOMP_parallel and omp_get_thread_num, whose threads programs run on while
// they spin. Not to be called while a program runs, nor in a forked child, where the runtime may wait for ever for threads
// that only the parent has.
void fxq_openmp(void* parallel, void* number);
// Bytes of arenas that the program holds at present.
int64_t fxq_held_bytes(const fxq_program* program);
// Packed bytes of the program's weights.
int64_t fxq_packed_bytes(const fxq_program* program);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
