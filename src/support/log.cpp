#include "hcsmoe/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/basic_file_sink.h>

#include <cstdio>

#include "hcsmoe/error.h"
#include "support/files.h"
#include "support/log_state.h"
#include "support/text.h"

namespace hcsmoe {
namespace {

std::string elapsed(std::chrono::steady_clock::time_point start) {
  char text[32];
  std::snprintf(text, sizeof text, "[%7.1f s] ", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return text;
}

void to_file(spdlog::logger* file, spdlog::level::level_enum level, const std::string& line) {
  if (file) file->log(level, spdlog::string_view_t(line));  // not as a format: lines may have braces
}

}  // namespace

Log::Log(int rank, bool speaks) : state_(std::make_unique<State>()) {
  state_->rank = rank;
  state_->speaks = speaks;
}

Log::~Log() = default;

void Log::open_file(const std::filesystem::path& work) {
  const std::filesystem::path file = work / "log" / ("rank_" + std::to_string(state_->rank) + ".txt");
  make_folder(file.parent_path());
  try {
    state_->file = std::make_shared<spdlog::logger>("rank", std::make_shared<spdlog::sinks::basic_file_sink_mt>(file.string()));
  } catch (const spdlog::spdlog_ex& error) {
    throw UserError("cannot write the log file " + file.string() + ": " + error.what(), "check the permissions of the work folder");
  }
  state_->file->set_pattern("%Y-%m-%d %H:%M:%S.%e %-7l %v");
  state_->file->flush_on(spdlog::level::info);
  state_->file->set_error_handler([](const std::string&) {});  // a full disk is reported where results are written
}

void Log::info(const std::string& text) {
  const std::string line = printable(text);
  to_file(state_->file.get(), spdlog::level::info, line);
  if (state_->speaks) state_->terminal.print(elapsed(state_->start) + line);
}

void Log::warn(const std::string& text) {
  const std::string line = printable(text);
  to_file(state_->file.get(), spdlog::level::warn, line);
  if (state_->speaks) state_->terminal.print(elapsed(state_->start) + "warning: " + line);
}

void Log::error(const std::string& text) {
  const std::string line = printable(text);
  to_file(state_->file.get(), spdlog::level::err, line);
  const std::string who = state_->speaks ? "" : "rank " + std::to_string(state_->rank) + ": ";
  state_->terminal.show("");
  state_->terminal.print("hcsmoe_dist: " + who + "error: " + line);
}

}  // namespace hcsmoe
