#include <algorithm>
#include <cmath>
#include <cstdio>
#include <mutex>

#include "hcsmoe/log.h"
#include "support/log_state.h"

namespace hcsmoe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double redraw_seconds = 0.1;  // of the bar
constexpr double line_seconds = 5;      // between lines where there is no terminal
constexpr int widest_bar = 40, narrowest_bar = 5;

std::string printed(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

/// value / 1000^n with the unit of n, with one decimal from 1000 on: never "1000.0".
std::string scaled(double value, std::initializer_list<const char*> units) {
  auto unit = units.begin();
  if (std::abs(value) < 999.5) return printed("%.0f", value) + *unit;
  while (std::abs(value) >= (unit == units.begin() ? 999.5 : 999.95) && unit + 1 != units.end()) {
    value /= 1000;
    ++unit;
  }
  return printed("%.1f", value) + *unit;
}

/// 0:31, 12:05, 1:02:05
std::string clock_time(double seconds) {
  const auto total = static_cast<int64_t>(std::clamp(seconds, 0.0, 1e9) + 0.5);
  char text[64];
  const auto hours = static_cast<long>(total / 3600), minutes = static_cast<long>(total / 60 % 60), rest = static_cast<long>(total % 60);
  if (hours > 0) {
    std::snprintf(text, sizeof text, "%ld:%02ld:%02ld", hours, minutes, rest);
  } else {
    std::snprintf(text, sizeof text, "%ld:%02ld", minutes, rest);
  }
  return text;
}

}  // namespace

struct Progress::State {
  Log& log;
  Log::State& shared;
  std::string stage, unit, detail_unit;
  int64_t total = 0;
  Clock::time_point start = Clock::now();

  std::mutex mutex;  // of all below; taken before the terminal's
  int64_t done = 0;
  double detail = 0;
  double last_step = 0, last_output = 0;  // seconds since start

  double seconds() const { return std::chrono::duration<double>(Clock::now() - start).count(); }
  std::string count() const { return std::to_string(done) + "/" + std::to_string(total) + " " + unit; }
  std::string percent() const { return std::to_string(total > 0 ? 100 * done / total : 100) + "%"; }
  std::string rate(double now) const {
    if (detail_unit.empty() || detail <= 0 || now <= 0) return "";
    return (detail_unit == "B" ? format_bytes(detail / now) : format_count(detail / now) + " " + detail_unit) + "/s";
  }
  /// Steps are taken to cost the same; between them the time runs down.
  std::string time_left(double now) const {
    if (done == 0 || done >= total) return "";
    return clock_time(last_step / static_cast<double>(done) * static_cast<double>(total) - now) + " left";
  }
  std::string bar_line(double now, int width) const;
  std::string plain_line(double now) const;
  void update();
  void finish();
};

/// collect  [=====>    ] 12/24 layers  50%  1.2k tokens/s  0:31 left
std::string Progress::State::bar_line(double now, int width) const {
  std::string after = count();
  for (const std::string& part : {percent(), rate(now), time_left(now)}) after += part.empty() ? "" : "  " + part;
  const int room = std::min(widest_bar, width - 1 - static_cast<int>(stage.size() + after.size()) - 5);
  if (room < narrowest_bar) return stage + "  " + after;
  const int filled = total > 0 ? static_cast<int>(room * std::min(done, total) / total) : room;
  std::string bar(static_cast<size_t>(filled), '=');
  if (filled < room) bar += '>';
  bar.resize(static_cast<size_t>(room), ' ');
  return stage + "  [" + bar + "] " + after;
}

/// collect: 12/24 layers, 50%, 1.2k tokens/s, 0:31 left
std::string Progress::State::plain_line(double now) const {
  std::string line = stage + ": " + count();
  for (const std::string& part : {percent(), rate(now), time_left(now)}) line += part.empty() ? "" : ", " + part;
  return line;
}

void Progress::State::update() {
  const double now = seconds();
  if (!shared.speaks || now - last_output < (shared.terminal.interactive() ? redraw_seconds : line_seconds)) return;
  last_output = now;
  if (shared.terminal.interactive()) {
    shared.terminal.show(bar_line(now, shared.terminal.width()));
  } else {
    log.info(plain_line(now));
  }
}

void Progress::State::finish() {
  const double now = seconds();
  if (shared.speaks) shared.terminal.show("");
  std::string line = stage + ": ";
  line += done >= total ? std::to_string(done) + " " + unit + " in " : "stopped at " + count() + " after ";
  line += format_duration(now);
  if (const std::string speed = rate(now); !speed.empty()) line += ", " + speed;
  log.info(line);
}

Progress::Progress(Log& log, const std::string& stage, int64_t total, const std::string& unit, const std::string& detail_unit)
    : state_(new State{log, *log.state_, stage, unit, detail_unit, total, Clock::now(), {}}) {
  if (state_->shared.speaks && state_->shared.terminal.interactive()) {
    state_->shared.terminal.show(state_->bar_line(0, state_->shared.terminal.width()));
  }
}

Progress::~Progress() {
  const std::lock_guard lock(state_->mutex);
  try {
    state_->finish();
  } catch (...) {  // a closing line is not worth ending the program
  }
}

void Progress::step(int64_t steps) {
  const std::lock_guard lock(state_->mutex);
  state_->done += steps;
  state_->last_step = state_->seconds();
  state_->update();
}

void Progress::add_detail(double amount) {
  const std::lock_guard lock(state_->mutex);
  state_->detail += amount;
  state_->update();
}

double Progress::seconds() const { return state_->seconds(); }

std::string format_bytes(double bytes) { return scaled(bytes, {" B", " kB", " MB", " GB", " TB", " PB"}); }
std::string format_count(double count) { return scaled(count, {"", "k", "M", "G", "T"}); }

std::string format_duration(double seconds) {
  if (!(seconds > 0)) return "0 s";
  if (seconds < 0.9995) return printed("%.0f ms", seconds * 1000);
  if (seconds < 59.95) return printed("%.1f s", seconds);
  const auto total = static_cast<int64_t>(std::min(seconds, 1e15) + 0.5);
  const auto two_digits = [](int64_t value) { return (value < 10 ? "0" : "") + std::to_string(value); };
  if (total < 3600) return std::to_string(total / 60) + " min " + two_digits(total % 60) + " s";
  const int64_t minutes = (total + 30) / 60;
  return std::to_string(minutes / 60) + " h " + two_digits(minutes % 60) + " min";
}

}  // namespace hcsmoe
