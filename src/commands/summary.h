#pragma once
// What a command did and what it took: printed at the end, and saved as WORK/run.json.

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "commands/evaluation_report.h"
#include "hcsmoe/checkpoint.h"
#include "hcsmoe/log.h"
#include "hcsmoe/plan.h"
#include "hcsmoe/ranks.h"
#include "hcsmoe/reconstruction.h"

namespace hcsmoe {

struct Summary {
  std::string command;
  int threads = 0;
  std::string dtype;
  std::optional<Recipe> recipe;
  StatisticsOrigin origin;
  std::string plan;  // plan_fingerprint of what the output was made by
  int64_t moe_layers = 0, experts = 0, experts_kept = 0;
  std::vector<std::pair<std::string, double>> seconds;  // by stage, in order
  int64_t sweep_tokens = 0;                             // over all ranks
  double sweep_seconds = 0;
  SweepFigures figures;  // of this rank
  uint64_t model_bytes = 0, output_bytes = 0;
  std::string output;
  std::vector<std::string> left_out;
  std::vector<FileRead> read;                                  // of the checkpoint, by the sweeps of all ranks; on rank 0
  std::vector<std::pair<std::string, std::string>> checksums;  // of the output's files; on rank 0
  std::vector<MeasuredModel> evaluation;
  std::vector<ReconstructionReport> reconstruction;  // of each layer, where blocks were fitted

  /// Runs a stage and notes its time.
  template <class Work>
  void stage(const std::string& name, Work&& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    seconds.emplace_back(name, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
};

/// Gathers what each rank has, prints on rank 0 and writes WORK/run.json. Collective.
void finish_summary(const Summary& summary, const std::filesystem::path& work, const Ranks& ranks, Log& log);

}  // namespace hcsmoe
