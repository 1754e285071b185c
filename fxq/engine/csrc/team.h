// The threads of the OpenMP runtime that PyTorch runs its operators on, lent to the engine.
//
// After an operator those threads spin for milliseconds, each on a core that the engine's own workers would then have to
// share. So a program between operators runs on the threads that spin already.
#ifndef FXQ_TEAM_H
#define FXQ_TEAM_H

#include "threads.h"

namespace fxq {

// Runs `work` with up to `threads` threads of the caller's team. False without having done anything where no runtime is
// known (see fxq_openmp), another caller's work runs on a team, or the process was forked: the team is then the parent's.
bool run_on_team(Work* work, int threads);

}  // namespace fxq
#endif
