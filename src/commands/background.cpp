#include "commands/background.h"

namespace hcsmoe {

Background::Background(Trace* trace, size_t most_waiting) : trace_(trace), most_waiting_(most_waiting), thread_([this] { work(); }) {}

Background::~Background() {
  {
    const std::lock_guard lock(mutex_);
    end_ = true;
    waiting_.clear();
  }
  changed_.notify_all();
  thread_.join();
}

void Background::submit(std::function<void()> task) {
  std::unique_lock lock(mutex_);
  const Span span(waiting_.size() < most_waiting_ ? nullptr : trace_, Activity::writing, "wait for the writer");
  changed_.wait(lock, [&] { return waiting_.size() < most_waiting_ || error_; });
  if (error_) return;  // check() and wait() tell
  waiting_.push_back(std::move(task));
  changed_.notify_all();
}

void Background::check() {
  const std::lock_guard lock(mutex_);
  if (error_) std::rethrow_exception(error_);
}

void Background::wait() {
  const Span span(trace_, Activity::writing, "wait for the writer");
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return (waiting_.empty() && !busy_) || error_; });
  if (error_) std::rethrow_exception(error_);
}

void Background::work() {
  const TraceRow row(trace_, "writer");
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return end_ || (!waiting_.empty() && !error_); });
    if (end_) return;
    const auto task = std::move(waiting_.front());
    waiting_.pop_front();
    busy_ = true;
    lock.unlock();
    std::exception_ptr error;
    try {
      task();
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    busy_ = false;
    if (error) {
      error_ = error;
      waiting_.clear();
    }
    changed_.notify_all();
  }
}

}  // namespace hcsmoe
