#pragma once
// What the program says. Each rank logs to WORK/log/rank_N.txt once a work folder is known; rank 0 also speaks on the terminal (stderr).
// Progress: on a terminal one bar a stage with rate and time left, redrawn in place; otherwise a line at most every few seconds.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace hcsmoe {

/// One rank's log. Passed to the stages that speak; never global.
class Log {
 public:
  /// speaks: this rank also writes to the terminal (rank 0).
  explicit Log(int rank, bool speaks);
  ~Log();
  Log(const Log&) = delete;
  void open_file(const std::filesystem::path& work);  // WORK/log/rank_N.txt, appended
  void info(const std::string& line);
  void warn(const std::string& line);
  void error(const std::string& line);

 private:
  friend class Progress;
  struct State;
  std::unique_ptr<State> state_;
};

/// The progress of one stage. Silent on ranks that do not speak. Ends (newline, or a closing line with the total time) on destruction.
class Progress {
 public:
  /// unit: what a step is ("layers"); total: number of steps. detail_unit: of add_detail, shown as a rate ("tokens" -> "1.2k tokens/s"),
  /// "B" for bytes; may be empty.
  Progress(Log&, const std::string& stage, int64_t total, const std::string& unit, const std::string& detail_unit = "");
  ~Progress();
  Progress(const Progress&) = delete;
  void step(int64_t steps = 1);
  void add_detail(double amount);
  double seconds() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Figures for people: "28.6 GB", "1 h 02 min", "12.3k".
std::string format_bytes(double bytes);
std::string format_duration(double seconds);
std::string format_count(double count);

}  // namespace hcsmoe
