// Instruction sets: their names, and which of them this machine and its operating system run.
#ifndef FXQ_ISA_H
#define FXQ_ISA_H

#include "kernel.h"

namespace fxq {

const char* isa_name(Isa isa);
// False for an unknown name.
bool isa_of(const char* name, Isa* isa);
bool isa_runs(Isa isa);
Isa best_isa();

}  // namespace fxq
#endif
