// model.safetensors.index.json of a folder that holds a few files, some of them links.

#include "checkpoint/folder.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hcsmoe;
  static fuzz::OpenFile file;
  [[maybe_unused]] static const bool made = [] {
    for (const char* name : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "a.safetensors"}) file.path(name);
    return true;
  }();
  file.path("model.safetensors.index.json");
  file.fill(fuzz::text(data, size));
  return fuzz::answers([&] {
    for (const auto& path : model_files(file.folder()).files) {
      fuzz::require(path.parent_path() == file.folder(), "an index names files of its own folder");
    }
  });
}
