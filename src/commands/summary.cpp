#include "commands/summary.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "commands/reconstruction_json.h"
#include "support/checksums.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

using nlohmann::ordered_json;

/// Highest resident memory of this process so far, mapped checkpoint pages included.
int64_t peak_memory_bytes() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    if (word == "VmHWM:") {
      int64_t kilobytes = 0;
      status >> kilobytes;
      return kilobytes * 1024;
    }
  }
  return 0;
}

struct RankFigures {
  int64_t peak_memory = 0;
  SweepFigures sweep;
};

std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

}  // namespace

void finish_summary(const Summary& s, const std::filesystem::path& work, const Ranks& ranks, Log& log) {
  const RankFigures mine{peak_memory_bytes(), s.figures};
  const auto gathered = ranks.gather(std::string(reinterpret_cast<const char*>(&mine), sizeof mine), 0);
  ranks.on_root([&] {
    std::vector<int64_t> peak;
    SweepFigures all;  // operations added up; seconds of the slowest rank
    for (const std::string& bytes : gathered) {
      RankFigures rank;
      std::memcpy(&rank, bytes.data(), sizeof rank);
      peak.push_back(rank.peak_memory);
      all.operations += rank.sweep.operations;
      all.block_operations += rank.sweep.block_operations;
      all.block_seconds = std::max(all.block_seconds, rank.sweep.block_seconds);
      all.attention_seconds = std::max(all.attention_seconds, rank.sweep.attention_seconds);
    }
    double total = 0;
    std::string stages;
    ordered_json seconds = ordered_json::object();
    for (const auto& [name, time] : s.seconds) {
      total += time;
      seconds[name] = time;
      stages += (stages.empty() ? "" : ", ") + name + " " + format_duration(time);
    }
    seconds["total"] = total;

    ordered_json json = {{"format", "hcsmoe-run/1"}, {"command", s.command}, {"ranks", ranks.size()}};
    if (s.threads > 0) json["threads"] = s.threads;
    if (!s.dtype.empty()) json["dtype"] = s.dtype;
    if (s.recipe) json["recipe"] = ordered_json::parse(recipe_to_json(*s.recipe));
    json["origin"] = {{"checkpoint", s.origin.checkpoint}, {"calibration", s.origin.calibration}, {"dtype", s.origin.dtype}};
    if (!s.plan.empty()) json["plan"] = s.plan;
    json["moe_layers"] = s.moe_layers;
    json["experts"] = s.experts;
    if (s.experts_kept > 0) json["experts_kept"] = s.experts_kept;
    json["seconds"] = seconds;
    if (s.sweep_tokens > 0 && s.sweep_seconds > 0) {
      json["tokens"] = s.sweep_tokens;
      json["tokens_per_second"] = static_cast<double>(s.sweep_tokens) / s.sweep_seconds;
      json["operations"] = all.operations;
      json["gflops"] = all.operations / s.sweep_seconds / 1e9;
      json["experts_pass"] = {{"seconds", all.block_seconds}, {"gflops", all.block_operations / all.block_seconds / 1e9}};
      json["attention_seconds"] = all.attention_seconds;
    }
    if (!s.reconstruction.empty()) {
      json["reconstruction"] = ordered_json::array();
      for (const ReconstructionReport& layer : s.reconstruction) json["reconstruction"].push_back(reconstruction_json(layer));
    }
    json["bytes"] = {{"model", s.model_bytes}};
    if (s.output_bytes > 0) json["bytes"]["output"] = s.output_bytes;
    if (!s.read.empty() || !s.checksums.empty()) {
      ordered_json& checksums = json["checksums"] = {{"algorithm", checksums_algorithm}};
      for (const FileRead& file : s.read) checksums["read"][file.file] = {{"bytes", file.bytes}, {"checksum", file.checksum}};
      for (const auto& [file, checksum] : s.checksums) checksums["output"][file] = checksum;
    }
    json["peak_memory_bytes"] = peak;
    if (!s.left_out.empty()) json["left_out"] = s.left_out;
    if (!s.evaluation.empty()) json["evaluation"] = evaluation_json(s.evaluation, s.dtype);
    write_file_atomically(work / "run.json", json.dump(2) + "\n");

    if (s.output_bytes > 0) {
      log.info(std::to_string(s.moe_layers) + " layers of " + std::to_string(s.experts) + " experts -> " + std::to_string(s.experts_kept) +
               "; weights " + format_bytes(static_cast<double>(s.model_bytes)) + " -> " +
               format_bytes(static_cast<double>(s.output_bytes)) + " (" +
               fixed(100.0 * static_cast<double>(s.output_bytes) / static_cast<double>(s.model_bytes), 1) + " %)");
    }
    log.info("time: " + stages + "; total " + format_duration(total));
    if (s.sweep_tokens > 0 && s.sweep_seconds > 0) {
      log.info("sweep: " + format_count(static_cast<double>(s.sweep_tokens) / s.sweep_seconds) + " tokens/s through the whole model, " +
               fixed(all.operations / s.sweep_seconds / 1e9, 1) + " GFLOP/s; experts " + format_duration(all.block_seconds) + " at " +
               fixed(all.block_operations / all.block_seconds / 1e9, 1) + " GFLOP/s, attention " + format_duration(all.attention_seconds));
    }
    std::string memory;
    for (const int64_t bytes : peak) memory += (memory.empty() ? "" : ", ") + format_bytes(static_cast<double>(bytes));
    log.info("peak memory a rank, mapped weights included: " + memory);
    if (!s.evaluation.empty()) {
      for (const std::string& line : evaluation_table(s.evaluation)) log.info(line);
    }
    for (const std::string& file : s.left_out) log.info("not copied: " + file);
    if (!s.output.empty()) log.info("output: " + s.output);
  });
}

}  // namespace hcsmoe
