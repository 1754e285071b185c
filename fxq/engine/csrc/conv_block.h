// The blocks of pixels and channels of the instruction set that this unit is compiled for.
#ifndef FXQ_CONV_BLOCK_H
#define FXQ_CONV_BLOCK_H

#if defined(FXQ_AVX512VNNI)
#include "conv_block_avx512.h"
#else
#include "conv_block_avx2.h"
#endif

#endif
