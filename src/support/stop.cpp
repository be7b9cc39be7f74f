#include "hcsmoe/stop.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <thread>

namespace hcsmoe {
namespace {

constexpr timespec between_looks{0, 100'000'000};

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGUSR1);
  return set;
}

bool is_there(pid_t process) { return ::kill(process, 0) == 0 || errno == EPERM; }

}  // namespace

void block_stop_signals() {
  const sigset_t set = stop_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

struct StopRequest::State {
  using Clock = std::chrono::steady_clock;

  const int rank;
  const pid_t launcher;
  const StopLimits limits;
  std::vector<pid_t> peers;  // that this process can see: a container may hide them
  std::atomic<bool> requested{false}, agreed{false}, ends{false};
  std::atomic<int> failure{0};
  std::thread thread;

  /// Ends the process without cleaning up: another thread may be anywhere.
  [[noreturn]] void leave(int code, const std::string& why) const {
    const std::string line = "hcsmoe_dist: rank " + std::to_string(rank) + ": " + why + "\n";
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
    ::_exit(code);
  }
  bool a_peer_is_gone() const {
    for (const pid_t process : peers) {
      if (!is_there(process)) return true;
    }
    return false;
  }

  void watch() {
    const sigset_t set = stop_signals();
    Clock::time_point start;
    while (!ends) {
      const int signal = ::sigtimedwait(&set, nullptr, &between_looks);
      if (signal > 0 && failure != 0) ::_exit(failure);
      if (signal > 0 && !requested) {
        start = Clock::now();
        requested = true;
      }
      if (launcher != 0 && ::getppid() != launcher) leave(1, "what started it has ended");
      if (!requested || failure != 0) continue;
      const auto waited = Clock::now() - start;
      constexpr int interrupted = static_cast<int>(ExitCode::interrupted);
      if (agreed) {
        if (waited > limits.to_end) leave(interrupted, "asked to stop; saving took too long, the layer at hand is done again next time");
      } else {
        if (a_peer_is_gone()) leave(1, "another rank has ended, and with it the job");
        if (waited > limits.to_boundary) leave(interrupted, "asked to stop in the middle of a layer, which is done again next time");
      }
    }
  }
};

StopRequest::StopRequest(int rank, std::vector<int64_t> processes, pid_t launcher, StopLimits limits)
    : state_(new State{rank, launcher, limits, {}, {}, {}, {}, {}, {}}) {
  for (const int64_t process : processes) {
    const auto id = static_cast<pid_t>(process);
    if (id != ::getpid() && is_there(id)) state_->peers.push_back(id);
  }
  state_->thread = std::thread([this] { state_->watch(); });
}

StopRequest::~StopRequest() {
  state_->ends = true;
  state_->thread.join();
}

bool StopRequest::requested() const { return state_->requested; }
void StopRequest::agreed() { state_->agreed = true; }
void StopRequest::failing(int exit_code) { state_->failure = exit_code; }

}  // namespace hcsmoe
