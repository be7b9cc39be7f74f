#pragma once
// Work that goes on beside the sweep: merging and writing. One thread, tasks in order, at most a few waiting, so memory stays bounded. The
// first error ends the rest and is thrown where the caller looks for it.

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "hcsmoe/trace.h"

namespace hcsmoe {

class Background {
 public:
  /// trace: where its thread has a row, and waits for it are noted; may be null.
  explicit Background(Trace* trace = nullptr, size_t most_waiting = 2);
  ~Background();  // drops what has not started, waits for what has
  Background(const Background&) = delete;
  /// Blocks while the queue is full. The task must not use MPI.
  void submit(std::function<void()> task);
  /// Throws the first error of a task so far.
  void check();
  /// Waits for all tasks, then as check().
  void wait();

 private:
  void work();
  Trace* const trace_;
  const size_t most_waiting_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> waiting_;
  bool busy_ = false, end_ = false;
  std::exception_ptr error_;
  std::thread thread_;  // last: it uses the others
};

}  // namespace hcsmoe
