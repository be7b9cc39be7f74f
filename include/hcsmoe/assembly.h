#pragma once
// Assembly: shards and untouched tensors become a Hugging Face folder again. All ranks write, one safetensors file at a time a rank,
// streamed: no tensor is held in memory. The folder appears under its final name when it is complete, or not at all.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/families.h"
#include "hcsmoe/ranks.h"
#include "hcsmoe/trace.h"

namespace hcsmoe {

/// Where an output tensor's bytes come from.
struct OutputTensor {
  TensorInfo info;          // dtype and shape; file: index of the output file; begin/end: byte range there
  bool from_shard = false;  // else copied from the checkpoint
  int64_t layer = -1;       // of the shard
};
struct OutputFile {
  std::string name;                   // model-00001-of-00003.safetensors, or model.safetensors if there is one file
  std::vector<OutputTensor> tensors;  // in the order of their bytes
  uint64_t bytes = 0;                 // of the whole file
};
/// The output's files, laid out before anything is written: also what `inspect` prints. Deterministic: tensors keep the checkpoint's order
/// (file by file), merged ones stand where the layer's first replaced tensor stood, files are filled up to max_shard_bytes of tensors. In a
/// file of several element sizes the larger ones come first, so that every tensor is aligned to its element size. With fewer experts than
/// the checkpoint's, layers for multi-token prediction are left out.
std::vector<OutputFile> output_layout(const Checkpoint&, const ModelDescription&, int64_t experts_kept, int64_t max_shard_bytes);

// What a finished output holds besides what `assemble` writes. The report, which can be made again at any time, has no checksum.
inline constexpr const char* plan_name = "hcsmoe_plan.json";
inline constexpr const char* card_name = "README.md";
inline constexpr const char* report_name = "report.html";

/// UserError if OUTPUT exists, or its disk has too little room. `assemble` asks the same; a run asks before it begins.
void check_output_folder(const Checkpoint&, const std::vector<OutputFile>& layout, const std::filesystem::path& output);

struct AssemblySummary {
  uint64_t bytes = 0;  // of all safetensors files
  int64_t files = 0, tensors = 0, copied_files = 0;
  int64_t found = 0;  // of these files, written by an assembly that was interrupted
  /// Of every file of the output, by name: XXH3-128 in hex, as `checksums.xxh128` in the output says too. On rank 0.
  std::vector<std::pair<std::string, std::string>> checksums;
  std::vector<std::string> left_out;  // files (other weight formats) and layers (for multi-token prediction) that were not copied, with why
};
struct AssemblyOptions {
  /// What the run is asked to do. Files that an interrupted assembly of the same job has finished are checked and not written again.
  std::string job = "";
  /// Called on this rank as bytes of safetensors files are written; over all ranks they add up to AssemblySummary::bytes.
  std::function<void(uint64_t)> progress = {};
  /// Called on all ranks when each has finished a file. Collective; may throw.
  std::function<void()> after_round = {};
  Trace* trace = nullptr;
};
/// Collective. Writes OUTPUT.partial and renames it to OUTPUT. Throws UserError: OUTPUT exists, disk full, a shard is missing or damaged, a
/// file of the checkpoint has changed since it was opened.
/// On an error OUTPUT.partial is removed (a full disk needs the room). It stays after a kill, or an error of ExitCode::interrupted; the
/// next assembly of the same job goes on with it, and that of another one replaces it.
AssemblySummary assemble(const Ranks&, const Checkpoint&, const ModelDescription&, int64_t experts_kept, int64_t max_shard_bytes,
                         const std::filesystem::path& work, const std::filesystem::path& output, const AssemblyOptions& = {});

}  // namespace hcsmoe
