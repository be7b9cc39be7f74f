#pragma once
// A thread that reads the pieces 0 .. count-1 in their order, as soon as there is room for each. Its first error ends it and is thrown, as
// it was, where the pieces are waited for.

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "hcsmoe/trace.h"

namespace hcsmoe {

class ReadAhead {
 public:
  /// room and read are called on the thread. room: whether a piece may be read now; asked again every few milliseconds. trace: where the
  /// thread has a row.
  ReadAhead(size_t count, std::function<bool(size_t)> room, std::function<void(size_t)> read, Trace* trace = nullptr);
  ~ReadAhead();  // ends after the piece that is being read
  ReadAhead(const ReadAhead&) = delete;

  /// Returns when the first `count` pieces have been read; throws what reading them met. Error: no piece came for as long as `limit`.
  void wait_for(size_t count, std::chrono::milliseconds limit);
  size_t pieces_read() const;

 private:
  void work(Trace*);
  const size_t count_;
  const std::function<bool(size_t)> room_;
  const std::function<void(size_t)> read_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  size_t read_so_far_ = 0;
  bool end_ = false;
  std::exception_ptr error_;
  std::thread thread_;  // last: it uses the others
};

}  // namespace hcsmoe
