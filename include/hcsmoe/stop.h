#pragma once
// Being asked to stop: SIGTERM (mpirun, Slurm's end of the time limit, a container's end) and SIGUSR1 (a warning before it). The flow looks
// at layer boundaries, where all ranks agree, save and leave with exit code 75. A rank that does not come to one in time leaves by itself:
// what it saved after the layer before is whole, so nothing but the layer at hand is lost.

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "hcsmoe/error.h"

namespace hcsmoe {

/// Blocks the two signals in this thread and in those that it starts from now on. To be called before MPI starts threads of its own.
void block_stop_signals();

struct StopLimits {
  std::chrono::milliseconds to_boundary{10'000};  // from the signal to the ranks' agreement
  std::chrono::milliseconds to_end{18'000};       // from the signal to the end of saving
};

/// Waits for the signals on a thread of its own. One a process.
class StopRequest {
 public:
  /// processes: ranks of this node, this one among them or not. After a signal, one that is gone means that the job is being ended because
  /// of it: nothing is to be agreed any more, and this process leaves at once. So it does where `launcher`, its parent, is gone (0: nobody
  /// started this process as a rank).
  StopRequest(int rank, std::vector<int64_t> processes, pid_t launcher, StopLimits limits = {});
  ~StopRequest();
  StopRequest(const StopRequest&) = delete;

  bool requested() const;
  /// All ranks have agreed to stop: they save, and end in order.
  void agreed();
  /// This process is ending with this code because of an error: from here on a signal ends it at once.
  void failing(int exit_code);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hcsmoe
