#pragma once
// What stands in a Hugging Face folder beside the safetensors files: config.json, the index, and files that are copied or left out.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "hcsmoe/assembly.h"

namespace hcsmoe {

struct OtherFiles {
  struct File {
    std::filesystem::path path;
    std::string name;  // in the output: carried_name of its own
    uint64_t bytes = 0;
  };
  std::vector<File> copied;           // tokenizer, generation_config.json, licence, modeling code ...
  std::vector<std::string> left_out;  // "name: why"
};
/// The checkpoint folder's other files, by name. A link (in a Hugging Face cache every file is one) counts as the file that it leads to;
/// one that leads out of the folder to a file that is not a model's is left out.
OtherFiles other_files(const Checkpoint&);

/// What a file of the original is called in the output: README.md, report.html and hcsmoe_plan.json of the original give way to the
/// output's own, README.md as README.original.md, README.original.md as README.original.original.md.
std::string carried_name(const std::string& name);

/// The checkpoint's config.json with K experts, otherwise unchanged.
std::string config_text(const Checkpoint&, const ModelDescription&, int64_t experts_kept);

/// model.safetensors.index.json.
std::string index_text(const Checkpoint&, const std::vector<OutputFile>&);

inline constexpr const char* index_name = "model.safetensors.index.json";

}  // namespace hcsmoe
