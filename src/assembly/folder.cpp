#include "assembly/folder.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <system_error>

#include "hcsmoe/error.h"
#include "support/checksums.h"
#include "support/json.h"
#include "support/text.h"

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

/// A link (git keeps them) may lead to any file of this machine, which must not get into an output that is handed on. One that leads out of
/// the folder is followed to the blobs of a Hugging Face cache, or to a file of the same name that is of a kind a model has.
bool leads_astray(const fs::path& link, const fs::path& model) {
  std::error_code failure;
  const fs::path target = fs::canonical(link, failure), folder = failure ? fs::path() : fs::canonical(model, failure);
  if (failure) return true;
  if (std::mismatch(folder.begin(), folder.end(), target.begin(), target.end()).first == folder.end()) return false;
  if (target.parent_path().filename() == "blobs") return false;
  const std::string name = link.filename().string();
  if (target.filename() != name) return true;
  static constexpr const char* endings[] = {".json", ".txt", ".model", ".jinja", ".md", ".py", ".tiktoken"};
  const bool of_a_model =
      std::any_of(std::begin(endings), std::end(endings), [&](const char* end) { return !name.starts_with('.') && name.ends_with(end); });
  return !of_a_model;
}

}  // namespace

std::string carried_name(const std::string& name) {
  static constexpr std::string_view original = ".original";
  for (const char* own : {card_name, report_name, plan_name}) {
    const fs::path file = own;
    const std::string stem = file.stem(), ending = file.extension();
    if (!name.starts_with(stem) || !name.ends_with(ending) || name.size() < stem.size() + ending.size()) continue;
    std::string_view between = std::string_view(name).substr(stem.size(), name.size() - stem.size() - ending.size());
    while (between.starts_with(original)) between.remove_prefix(original.size());
    if (between.empty()) return name.substr(0, name.size() - ending.size()) + std::string(original) + ending;
  }
  return name;
}

OtherFiles other_files(const Checkpoint& checkpoint) {
  std::set<std::string> rewritten = {"config.json", index_name, checksums_name};
  for (const fs::path& file : checkpoint.files()) rewritten.insert(file.filename().string());

  OtherFiles others;
  std::error_code error;
  fs::directory_iterator entry(checkpoint.folder(), error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (rewritten.contains(name)) continue;
    if (std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f || c == '\\'; })) {
      others.left_out.push_back(printable(name_text(name)) + ": its name has a control character or a backslash");
      continue;
    }
    std::error_code missing;
    const fs::file_status status = fs::status(entry->path(), missing);
    if (fs::is_directory(status)) {
      others.left_out.push_back(name + ": a folder");
    } else if (!fs::is_regular_file(status)) {
      others.left_out.push_back(name + (entry->is_symlink(missing) ? ": a link that leads nowhere" : ": not a regular file"));
    } else if (holds_weights(name)) {
      others.left_out.push_back(name + ": weights of the original");
    } else if (entry->is_symlink(missing) && leads_astray(entry->path(), checkpoint.folder())) {
      others.left_out.push_back(name + ": a link out of the folder; put the file there if it belongs to the model");
    } else {
      others.copied.push_back({entry->path(), carried_name(name), fs::file_size(entry->path())});
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
