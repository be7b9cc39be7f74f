#pragma once
// Which files of a model folder hold its tensors.

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace hcsmoe {

struct FolderContents {
  std::vector<std::filesystem::path> files;       // safetensors files to be read, in order of their names; never empty
  std::map<std::string, std::string> weight_map;  // tensor -> file name, of the index; empty if there is none
};

/// The rules, which agree with transformers where it accepts the folder:
///  - model.safetensors.index.json: the files that it names and no others (Mixtral's folder also holds the same weights as consolidated.*);
///  - else model.safetensors alone;
///  - else every *.safetensors file; a numbered series (model-00002-of-00003) must be complete.
/// An index beside a model.safetensors that it does not name is refused: which of the two is meant cannot be told.
/// Throws UserError; the message tells unfinished downloads and folders that hold only pickles or GGUF apart.
FolderContents model_files(const std::filesystem::path& folder);

}  // namespace hcsmoe
