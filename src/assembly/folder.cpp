#include "assembly/folder.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>

#include "hcsmoe/error.h"
#include "support/json.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;

/// Formats that would bring the original's weights, or a list of them, into the output.
bool holds_weights(const std::string& name) {
  static constexpr const char* endings[] = {".safetensors", ".bin",  ".pt",   ".pth", ".ckpt",      ".h5",
                                            ".msgpack",     ".onnx", ".gguf", ".ot",  ".index.json"};
  return name.starts_with("tf_model") ||
         std::any_of(std::begin(endings), std::end(endings), [&](const char* end) { return name.ends_with(end); });
}

}  // namespace

OtherFiles other_files(const Checkpoint& checkpoint) {
  std::set<std::string> rewritten = {"config.json", index_name};
  for (const fs::path& file : checkpoint.files()) rewritten.insert(file.filename().string());

  OtherFiles others;
  std::error_code error;
  fs::directory_iterator entry(checkpoint.folder(), error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (rewritten.contains(name)) continue;
    std::error_code missing;
    const fs::file_status status = fs::status(entry->path(), missing);
    if (fs::is_directory(status)) {
      others.left_out.push_back(name + ": a folder");
    } else if (!fs::is_regular_file(status)) {
      others.left_out.push_back(name + (entry->is_symlink(missing) ? ": a link that leads nowhere" : ": not a regular file"));
    } else if (holds_weights(name)) {
      others.left_out.push_back(name + ": weights of the original");
    } else {
      others.copied.push_back({entry->path(), fs::file_size(entry->path())});
    }
  }
  if (error) throw UserError(checkpoint.folder().string() + ": cannot list the folder: " + error.message());
  std::sort(others.copied.begin(), others.copied.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  std::sort(others.left_out.begin(), others.left_out.end());
  return others;
}

std::string config_text(const Checkpoint& checkpoint, const ModelDescription& model, int64_t experts_kept) {
  nlohmann::ordered_json config = checkpoint.config();
  for (const std::string& key : model.expert_count_keys) config[key] = experts_kept;
  if (experts_kept < model.experts) {
    for (const auto& [key, value] : model.compressed_values) config[key] = value;
  }
  return config.dump(2) + "\n";
}

std::string index_text(const Checkpoint& checkpoint, const std::vector<OutputFile>& files) {
  nlohmann::json index;  // keys sorted
  uint64_t bytes = 0;
  int64_t parameters = 0;
  for (const OutputFile& file : files) {
    for (const OutputTensor& tensor : file.tensors) {
      bytes += tensor.info.bytes();
      parameters += tensor.info.elements();
      index["weight_map"][tensor.info.name] = file.name;
    }
  }
  index["metadata"]["total_size"] = bytes;
  const fs::path original = checkpoint.folder() / index_name;
  if (fs::exists(original)) {
    const nlohmann::ordered_json json = read_json(original);
    const auto metadata = json.find("metadata");
    if (metadata != json.end() && metadata->is_object() && metadata->contains("total_parameters")) {
      index["metadata"]["total_parameters"] = parameters;
    }
  }
  return index.dump(2) + "\n";
}

}  // namespace hcsmoe
