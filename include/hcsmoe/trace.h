#pragma once
// Where a run's time goes: spans of work on each thread of each rank, written as one file in Chrome's trace format (for chrome://tracing,
// Perfetto, or a script). Passed as a pointer that is null where nobody asked for a trace: a span then costs one branch.

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace hcsmoe {

/// What a span is: the event's category.
enum class Activity { reading, copying, computing, reducing, clustering, reconstructing, writing };
std::string to_string(Activity);

/// The spans of one rank. Thread-safe.
class Trace {
 public:
  using Clock = std::chrono::steady_clock;
  /// origin: the moment that is 0 in the file; all ranks take it right after a barrier, so that their clocks agree.
  explicit Trace(int rank, Clock::time_point origin = Clock::now());
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  /// name: a literal, or anything that outlives the trace. layer: -1 for none.
  void add(Activity, const char* name, int64_t layer, Clock::time_point begin, Clock::time_point end);
  /// All events so far as JSON objects, separated by commas: a part of the file's "traceEvents".
  std::string events() const;

 private:
  friend class TraceRow;
  struct Event {
    Activity activity;
    const char* name;
    int64_t layer;
    int row;
    Clock::time_point begin, end;
  };
  void take_row(const std::string& name);
  void leave_row();
  int row_of(const std::string& name);

  const int rank_;
  const Clock::time_point origin_;
  mutable std::mutex mutex_;
  std::vector<std::string> rows_;  // names of threads
  std::set<int> taken_;            // rows of threads that live
  std::map<std::thread::id, int> row_of_thread_;
  std::vector<Event> events_;
};

/// The calling thread's row in the picture, under this name or, where a living thread has it, the name and a number; a later thread
/// continues the row of one that has ended. Made and destroyed by that thread; nothing where trace is null.
class TraceRow {
 public:
  TraceRow(Trace* trace, const std::string& name) : trace_(trace) {
    if (trace_) trace_->take_row(name);
  }
  ~TraceRow() {
    if (trace_) trace_->leave_row();
  }
  TraceRow(const TraceRow&) = delete;
  TraceRow& operator=(const TraceRow&) = delete;

 private:
  Trace* const trace_;
};

/// From its construction to its destruction, a span on this thread; nothing where trace is null.
class Span {
 public:
  Span(Trace* trace, Activity activity, const char* name, int64_t layer = -1)
      : trace_(trace), activity_(activity), name_(name), layer_(layer) {
    if (trace_) begin_ = Trace::Clock::now();
  }
  ~Span() {
    if (trace_) trace_->add(activity_, name_, layer_, begin_, Trace::Clock::now());
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  Trace* const trace_;
  const Activity activity_;
  const char* const name_;
  const int64_t layer_;
  Trace::Clock::time_point begin_;
};

}  // namespace hcsmoe
