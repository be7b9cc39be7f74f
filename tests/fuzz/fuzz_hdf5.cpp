// Statistics and shards of a work folder.

#include "fuzz.h"
#include "hcsmoe/shards.h"
#include "hcsmoe/statistics.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hcsmoe;
  static fuzz::OpenFile file;
  const auto path = file.path("layer_0003.h5");
  file.fill(fuzz::text(data, size));
  fuzz::answers([&] { load_statistics(path); });
  return fuzz::answers([&] {
    const ShardReader shard(path);
    for (const TensorInfo& tensor : shard.tensors()) shard.read(tensor.name, [](std::span<const std::byte>) {});
  });
}
