// Which kernel runs which operation on which instruction set.
#include "checks.h"

#if defined(__x86_64__)
#define FXQ_X86 1
#else
#define FXQ_X86 0
#endif

namespace fxq {

// Every kernel of an instruction set that its sources define.
#define FXQ_KERNELS(ns)                                               \
    namespace ns {                                                    \
    extern const Kernel load_kernel, store_kernel;                    \
    extern const Kernel lookup_kernel, copy_kernel;                   \
    extern const Kernel add_kernel, mul_kernel;                       \
    extern const Kernel max_pool_kernel, average_pool_kernel;         \
    extern const Kernel resize_kernel;                                \
    extern const Kernel quantise_kernel, dequantise_kernel;           \
    extern const Kernel unary_kernel;                                 \
    extern const Kernel layer_norm_kernel, rms_norm_kernel;           \
    extern const Kernel softmax_kernel;                               \
    extern const Kernel attention_kernel;                             \
    }
// Those that multiply bytes.
#define FXQ_DOT_KERNELS(ns)                                           \
    namespace ns {                                                    \
    extern const Kernel conv_kernel, depthwise_kernel;                \
    extern const Kernel code_attention_kernel;                        \
    }
FXQ_DOT_KERNELS(portable)
FXQ_KERNELS(portable)
#if FXQ_X86
FXQ_DOT_KERNELS(avx2)
FXQ_DOT_KERNELS(avxvnni)
FXQ_DOT_KERNELS(avx512vnni)
FXQ_KERNELS(avx2)
FXQ_KERNELS(avx512vnni)
#endif

#if defined(FXQ_WITH_AMX)
namespace amx {
extern const Kernel conv_kernel;
}
#define FXQ_TILES(kernel) &amx::kernel
#else
#define FXQ_TILES(kernel) nullptr
#endif

namespace {

#if FXQ_X86
#define FXQ_VECTOR(kernel) \
    { &portable::kernel, &avx2::kernel, nullptr, &avx512vnni::kernel, nullptr }
#define FXQ_DOT(kernel, tiles) \
    { &portable::kernel, &avx2::kernel, &avxvnni::kernel, &avx512vnni::kernel, tiles }
#else
#define FXQ_DOT(kernel, tiles) FXQ_VECTOR(kernel)
#define FXQ_VECTOR(kernel) \
    { &portable::kernel, nullptr, nullptr, nullptr, nullptr }
#endif

const Family FAMILIES[] = {
    {FXQ_LOAD, "load", check_load, FXQ_VECTOR(load_kernel)},
    {FXQ_STORE, "store", check_store, FXQ_VECTOR(store_kernel)},
    {FXQ_CONV, "convolution", check_conv, FXQ_DOT(conv_kernel, FXQ_TILES(conv_kernel))},
    {FXQ_DEPTHWISE, "depthwise", check_depthwise, FXQ_DOT(depthwise_kernel, nullptr)},
    {FXQ_LOOKUP, "lookup", check_lookup, FXQ_VECTOR(lookup_kernel)},
    {FXQ_COPY, "copy", check_copy, FXQ_VECTOR(copy_kernel)},
    {FXQ_ADD, "add", check_binary, FXQ_VECTOR(add_kernel)},
    {FXQ_MUL, "multiply", check_binary, FXQ_VECTOR(mul_kernel)},
    {FXQ_MAX_POOL, "max pool", check_max_pool, FXQ_VECTOR(max_pool_kernel)},
    {FXQ_AVG_POOL, "average pool", check_average_pool, FXQ_VECTOR(average_pool_kernel)},
    {FXQ_RESIZE, "resize", check_resize, FXQ_VECTOR(resize_kernel)},
    {FXQ_QUANTISE, "quantise", check_quantise, FXQ_VECTOR(quantise_kernel)},
    {FXQ_DEQUANTISE, "dequantise", check_dequantise, FXQ_VECTOR(dequantise_kernel)},
    {FXQ_ADD_F32, "add float32", check_add_real, FXQ_VECTOR(add_kernel)},
    {FXQ_UNARY_F32, "activation of float32", check_unary, FXQ_VECTOR(unary_kernel)},
    {FXQ_LAYER_NORM, "layer norm", check_layer_norm, FXQ_VECTOR(layer_norm_kernel)},
    {FXQ_RMS_NORM, "rms norm", check_rms_norm, FXQ_VECTOR(rms_norm_kernel)},
    {FXQ_SOFTMAX, "softmax", check_softmax, FXQ_VECTOR(softmax_kernel)},
    {FXQ_ATTENTION, "attention", check_attention, FXQ_VECTOR(attention_kernel)},
    {FXQ_ATTENTION_U8, "attention of codes", check_code_attention, FXQ_DOT(code_attention_kernel, nullptr)},
};

}  // namespace

const Family* find_family(int32_t code) {
    for (const Family& family : FAMILIES)
        if (family.code == code) return &family;
    return nullptr;
}

const Kernel* find_kernel(const Family& family, Isa isa) {
    for (int i = isa; i > 0; --i)
        if (family.kernels[i]) return family.kernels[i];
    return family.kernels[ISA_PORTABLE];
}

}  // namespace fxq
