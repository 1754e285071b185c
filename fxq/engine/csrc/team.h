// The threads of the OpenMP runtime that PyTorch runs its operators on, borrowed while they spin.
//
// After an operator those threads spin for milliseconds, each on a core that the engine's own workers would have to share.
// A call that comes meanwhile runs on them.
#ifndef FXQ_TEAM_H
#define FXQ_TEAM_H

#include "threads.h"

namespace fxq {

// Learns who is in the caller's team, once for each caller: the first time costs a parallel region.
void meet_team();

// Whether the caller's team spins now: about a microsecond. False where no runtime is known (see fxq_openmp), in a forked
// child, and where the system does not tell the time that a thread has run.
bool team_spins();

// Runs `work` with up to `threads` threads of the caller's team. False without having done anything where no runtime is
// known or another caller's work runs on a team.
bool run_on_team(Work* work, int threads);

}  // namespace fxq
#endif
