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
    }
namespace portable {
extern const Kernel conv_kernel;
}
FXQ_KERNELS(portable)
#if FXQ_X86
FXQ_KERNELS(avx2)
FXQ_KERNELS(avx512vnni)
#endif

namespace {

#if FXQ_X86
#define FXQ_VECTOR(kernel) \
    { &portable::kernel, &avx2::kernel, nullptr, &avx512vnni::kernel, nullptr }
#else
#define FXQ_VECTOR(kernel) \
    { &portable::kernel, nullptr, nullptr, nullptr, nullptr }
#endif

const Family FAMILIES[] = {
    {FXQ_LOAD, "load", check_load, FXQ_VECTOR(load_kernel)},
    {FXQ_STORE, "store", check_store, FXQ_VECTOR(store_kernel)},
    {FXQ_CONV, "convolution", check_conv, {&portable::conv_kernel, nullptr, nullptr, nullptr, nullptr}},
    {FXQ_DEPTHWISE, "depthwise", check_depthwise, {&portable::conv_kernel, nullptr, nullptr, nullptr, nullptr}},
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
