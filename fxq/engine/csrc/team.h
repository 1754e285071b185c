// The threads of the OpenMP runtime that PyTorch runs its operators on, borrowed while they spin.
//
// After an operator those threads spin for milliseconds, each on a core that the engine's own workers would have to
// share. A call that comes meanwhile runs on them.
#ifndef FXQ_TEAM_H
#define FXQ_TEAM_H

#include "threads.h"

namespace fxq {

// Whether the caller's team spins now. Takes about a microsecond; a caller who asks for the first time waits for a
// parallel region. False where no runtime is known (see fxq_openmp), in a forked child, and on other systems than Linux,
// which tells the time that a thread has run.
bool team_spins();

// Runs `work` with up to `threads` threads of the caller's team, after team_spins has said yes. False without having
// done anything where another caller's work runs on a team.
bool run_on_team(Work* work, int threads);

}  // namespace fxq
#endif
