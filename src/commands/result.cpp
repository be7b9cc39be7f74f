#include "commands/result.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "support/files.h"
#include "support/json.h"

namespace hcsmoe {
namespace {

using nlohmann::ordered_json;

/// collect where everything was there already: run.json may be of another command.
ordered_json nothing_done(const Job& job) {
  return {{"format", "hcsmoe-run/1"},
          {"command", to_string(job.line.command)},
          {"ranks", job.ranks.size()},
          {"origin",
           {{"checkpoint", job.summary.origin.checkpoint},
            {"calibration", job.summary.origin.calibration},
            {"dtype", job.summary.origin.dtype}}},
          {"moe_layers", job.summary.moe_layers},
          {"experts", job.summary.experts}};
}

ordered_json result_of(const Job& job) {
  if (!job.result.empty()) return ordered_json::parse(job.result);
  if (job.line.command == Command::evaluate) return evaluation_json(job.summary.evaluation, job.summary.dtype);
  const auto file = job.config.work / "run.json";
  const bool there = std::filesystem::exists(file);
  if (job.summarised || (there && job.line.command != Command::collect)) return read_json(file);
  return nothing_done(job);
}

}  // namespace

void print_result(const Job& job) {
  const std::string text = result_of(job).dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
  std::fwrite(text.data(), 1, text.size(), stdout);
}

}  // namespace hcsmoe
