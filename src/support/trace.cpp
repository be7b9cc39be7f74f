#include "hcsmoe/trace.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace hcsmoe {

std::string to_string(Activity activity) {
  switch (activity) {
    case Activity::reading:
      return "reading";
    case Activity::copying:
      return "copying";
    case Activity::computing:
      return "computing";
    case Activity::reducing:
      return "reducing";
    case Activity::clustering:
      return "clustering";
    case Activity::reconstructing:
      return "reconstructing";
    case Activity::writing:
      return "writing";
  }
  return "";
}

Trace::Trace(int rank, Clock::time_point origin) : rank_(rank), origin_(origin) { take_row("main"); }

int Trace::row_of(const std::string& name) {
  const auto found = std::find(rows_.begin(), rows_.end(), name);
  if (found != rows_.end()) return static_cast<int>(found - rows_.begin());
  rows_.push_back(name);
  return static_cast<int>(rows_.size()) - 1;
}

void Trace::take_row(const std::string& name) {
  const std::lock_guard lock(mutex_);
  int row = row_of(name);
  for (int number = 2; taken_.contains(row); ++number) row = row_of(name + " " + std::to_string(number));
  taken_.insert(row);
  row_of_thread_[std::this_thread::get_id()] = row;
}

void Trace::leave_row() {
  const std::lock_guard lock(mutex_);
  const auto mine = row_of_thread_.find(std::this_thread::get_id());  // another thread may get this id
  taken_.erase(mine->second);
  row_of_thread_.erase(mine);
}

void Trace::add(Activity activity, const char* name, int64_t layer, Clock::time_point begin, Clock::time_point end) {
  const std::lock_guard lock(mutex_);
  const auto [row, first] = row_of_thread_.try_emplace(std::this_thread::get_id(), 0);
  if (first) row->second = row_of("thread " + std::to_string(rows_.size()));
  events_.push_back({activity, name, layer, row->second, begin, end});
}

std::string Trace::events() const {
  using nlohmann::ordered_json;
  const std::lock_guard lock(mutex_);
  std::string text;
  const auto append = [&](const ordered_json& event) { text += (text.empty() ? "" : ",\n") + event.dump(); };
  append({{"name", "process_name"}, {"ph", "M"}, {"pid", rank_}, {"args", {{"name", "rank " + std::to_string(rank_)}}}});
  for (size_t row = 0; row < rows_.size(); ++row) {
    append({{"name", "thread_name"}, {"ph", "M"}, {"pid", rank_}, {"tid", row}, {"args", {{"name", rows_[row]}}}});
  }
  const auto microseconds = [](Clock::duration time) {  // whole nanoseconds, so that a span ends where its last part ends
    char digits[32];
    const auto n = std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
    std::snprintf(digits, sizeof digits, "%lld.%03lld", static_cast<long long>(n / 1000), static_cast<long long>(n % 1000));
    return std::string(digits);
  };
  for (const Event& event : events_) {
    text += ",\n{\"name\":" + ordered_json(event.name).dump() + ",\"cat\":\"" + to_string(event.activity) +
            "\",\"ph\":\"X\",\"ts\":" + microseconds(event.begin - origin_) + ",\"dur\":" + microseconds(event.end - event.begin) +
            ",\"pid\":" + std::to_string(rank_) + ",\"tid\":" + std::to_string(event.row);
    if (event.layer >= 0) text += ",\"args\":{\"layer\":" + std::to_string(event.layer) + "}";
    text += "}";
  }
  return text;
}

}  // namespace hcsmoe
