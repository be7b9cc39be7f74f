#include "checkpoint/folder.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>

#include "hcsmoe/error.h"
#include "support/json.h"
#include "support/text.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

// Whatever the file system says against the name (too long, not allowed to look): it is no file then.
bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  if (error) throw UserError("cannot read the folder " + folder.string() + ": " + error.message());
  std::sort(names.begin(), names.end());
  return names;
}

// Where huggingface_hub leaves what it has not finished; empty if there is none.
std::string unfinished_download(const fs::path& folder) {
  for (const fs::path& place : {folder, folder / ".cache/huggingface/download"}) {
    std::error_code ignored;
    if (!fs::is_directory(place, ignored)) continue;
    for (const std::string& name : names_in(place)) {
      if (name.ends_with(".incomplete")) return (place / name).string();
    }
  }
  return "";
}

[[noreturn]] void missing_file(const fs::path& folder, const std::string& name, const std::string& who_wants_it) {
  const fs::path file = folder / name;
  std::error_code ignored;
  if (fs::is_symlink(fs::symlink_status(file, ignored))) {
    throw UserError(file.string() + " is a link to a file that does not exist", "download the model again");
  }
  const std::string unfinished = unfinished_download(folder);
  if (!unfinished.empty()) {
    throw UserError(file.string() + " is missing, and " + unfinished + " is a download that was not finished",
                    "start the download again; it goes on where it stopped");
  }
  throw UserError(file.string() + " is missing: " + who_wants_it, "download the missing file, or copy it into the folder");
}

void check_plain_name(const fs::path& index, const std::string& tensor, const std::string& file) {
  const bool plain = !file.empty() && file != "." && file != ".." && file.find_first_of("/\\") == std::string::npos &&
                     std::none_of(file.begin(), file.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
  if (!plain) {
    throw UserError(
        index.string() + ": tensor " + name_text(tensor) + " is said to be in " + name_text(file) + ", which is not a plain file name",
        "an index may name only files of its own folder");
  }
  if (!file.ends_with(".safetensors")) {
    throw UserError(index.string() + ": tensor " + name_text(tensor) + " is said to be in " + name_text(file) +
                    ", which is not a .safetensors file");
  }
}

FolderContents from_index(const fs::path& folder) {
  const fs::path index = folder / kIndexFile;
  const nlohmann::ordered_json json = read_json(index);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    throw UserError(index.string() + ": it has no weight_map (an object from tensor names to file names)");
  }
  FolderContents contents;
  std::set<std::string> files;
  for (const auto& [tensor, value] : json["weight_map"].items()) {
    if (!value.is_string()) throw UserError(index.string() + ": the file of tensor " + name_text(tensor) + " is not a string");
    const auto file = value.get<std::string>();
    check_plain_name(index, tensor, file);
    files.insert(file);
    contents.weight_map[tensor] = file;
  }
  if (files.empty()) throw UserError(index.string() + ": its weight_map is empty");
  if (is_file(folder / kSingleFile) && !files.count(kSingleFile)) {
    throw UserError(folder.string() + " holds both " + kSingleFile + " and " + kIndexFile + ", which does not name it",
                    "remove the one that is not this model");
  }
  for (const std::string& file : files) {
    if (!is_file(folder / file)) missing_file(folder, file, "the index names it");
    contents.files.push_back(folder / file);
  }
  return contents;
}

// "model-00002-of-00003.safetensors": the others of the series must be there too.
void check_series(const fs::path& folder, const std::string& name, const std::set<std::string>& present) {
  const std::string suffix = ".safetensors";
  const std::string stem = name.substr(0, name.size() - suffix.size());
  const size_t of = stem.rfind("-of-");
  if (of == std::string::npos) return;
  const std::string total = stem.substr(of + 4);
  const size_t dash = of == 0 ? std::string::npos : stem.rfind('-', of - 1);
  if (dash == std::string::npos || total.empty() || total.size() > 6 || total.find_first_not_of("0123456789") != std::string::npos) return;
  const size_t width = of - dash - 1;
  for (int number = 1, last = std::stoi(total); number <= last; ++number) {
    std::string digits = std::to_string(number);
    if (digits.size() < width) digits.insert(0, width - digits.size(), '0');
    const std::string sibling = stem.substr(0, dash + 1) + digits + stem.substr(of) + suffix;
    if (!present.count(sibling)) missing_file(folder, sibling, "it belongs to the series of " + name);
  }
}

[[noreturn]] void no_safetensors(const fs::path& folder, const std::vector<std::string>& names) {
  auto first_with = [&](std::initializer_list<const char*> suffixes) -> std::string {
    for (const std::string& name : names) {
      for (const char* suffix : suffixes) {
        if (name.ends_with(suffix)) return name;
      }
    }
    return "";
  };
  if (std::string name = first_with({".bin", ".pt", ".pth", ".ckpt"}); !name.empty()) {
    throw UserError(folder.string() + " holds no .safetensors file, only PyTorch files (" + name +
                        "), which are pickles; pickles are never read, because they can run code",
                    "convert the model once with transformers: "
                    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True)");
  }
  if (std::string name = first_with({".gguf"}); !name.empty()) {
    throw UserError(folder.string() + " holds no .safetensors file, but " + name + ", which is made for llama.cpp",
                    "give the Hugging Face folder that it was made from");
  }
  if (std::string unfinished = unfinished_download(folder); !unfinished.empty()) {
    throw UserError(folder.string() + " holds no .safetensors file; " + unfinished + " is a download that was not finished",
                    "start the download again; it goes on where it stopped");
  }
  throw UserError(folder.string() + " holds no .safetensors file",
                  "`model` is the folder of a Hugging Face checkpoint: config.json and *.safetensors");
}

}  // namespace

FolderContents model_files(const fs::path& folder) {
  std::error_code error;
  if (!fs::exists(folder, error)) {
    throw UserError("the model folder " + folder.string() + " does not exist",
                    "`model` is a folder on this machine; `huggingface-cli download NAME --local-dir FOLDER` makes one");
  }
  if (!fs::is_directory(folder, error))
    throw UserError(folder.string() + " is not a folder", "`model` is the folder that holds config.json");
  const std::vector<std::string> names = names_in(folder);
  if (std::binary_search(names.begin(), names.end(), kIndexFile)) return from_index(folder);
  if (std::binary_search(names.begin(), names.end(), kSingleFile)) {
    if (!is_file(folder / kSingleFile)) missing_file(folder, kSingleFile, "it is not a file");
    return {{folder / kSingleFile}, {}};
  }
  std::set<std::string> present;
  std::copy_if(names.begin(), names.end(), std::inserter(present, present.end()),
               [](const std::string& n) { return n.ends_with(".safetensors"); });
  if (present.empty()) no_safetensors(folder, names);
  FolderContents contents;
  for (const std::string& name : present) {
    check_series(folder, name, present);
    if (!is_file(folder / name)) missing_file(folder, name, "it is not a file");
    contents.files.push_back(folder / name);
  }
  return contents;
}

}  // namespace hcsmoe
