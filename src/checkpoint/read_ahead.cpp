#include "checkpoint/read_ahead.h"

#include <utility>

#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

// Room may come about by what nobody announces, such as the end of a copy on a GPU.
constexpr std::chrono::milliseconds between_questions{2};

}  // namespace

ReadAhead::ReadAhead(size_t count, std::function<bool(size_t)> room, std::function<void(size_t)> read, Trace* trace)
    : count_(count), room_(std::move(room)), read_(std::move(read)), thread_([this, trace] { work(trace); }) {}

ReadAhead::~ReadAhead() {
  {
    const std::lock_guard lock(mutex_);
    end_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void ReadAhead::wait_for(size_t count, std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  while (read_so_far_ < count && !error_) {
    const size_t before = read_so_far_;
    if (!changed_.wait_for(lock, limit, [&] { return read_so_far_ != before || error_; })) {
      throw Error("reading the checkpoint made no progress for " + std::to_string(limit.count() / 1000.0) + " s: its disk hangs");
    }
  }
  if (read_so_far_ < count) std::rethrow_exception(error_);
}

size_t ReadAhead::pieces_read() const {
  const std::lock_guard lock(mutex_);
  return read_so_far_;
}

void ReadAhead::work(Trace* trace) {
  const TraceRow row(trace, "reader");
  for (size_t piece = 0; piece < count_; ++piece) {
    try {
      while (!room_(piece)) {
        std::unique_lock lock(mutex_);
        changed_.wait_for(lock, between_questions, [&] { return end_; });
        if (end_) return;
      }
      {
        const std::lock_guard lock(mutex_);
        if (end_) return;
      }
      read_(piece);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      error_ = std::current_exception();
      changed_.notify_all();
      return;
    }
    const std::lock_guard lock(mutex_);
    read_so_far_ = piece + 1;
    changed_.notify_all();
  }
}

}  // namespace hcsmoe
