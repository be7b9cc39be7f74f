// Reads a checkpoint as a sweep does, and nothing else: layer by layer from the weight stream, every page of a layer touched where it is
// mapped. Prints MB/s. tests/bench/disk.py runs it.
//
//     bench_reading MODEL
#include <chrono>
#include <cstdio>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/families.h"
#include "hcsmoe/weight_stream.h"

using namespace hcsmoe;

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: bench_reading MODEL\n");
    return 2;
  }
  const Checkpoint checkpoint = Checkpoint::open(argv[1]);
  const ModelDescription model = describe_model(checkpoint);
  std::vector<std::vector<std::string>> layers;
  for (int64_t layer = 0; layer < model.layers; ++layer) layers.push_back(layer_tensor_names(model, layer));
  const auto start = std::chrono::steady_clock::now();
  uint64_t read = 0, sum = 0;
  const auto stream = stream_weights(checkpoint, layers);
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    stream->begin_layer(layer);
    for (const std::string& name : layers[static_cast<size_t>(layer)]) {
      const at::Tensor tensor = stream->tensor(name);
      const auto* const bytes = static_cast<const uint8_t*>(tensor.const_data_ptr());
      for (size_t at = 0; at < tensor.nbytes(); at += 4096) sum += bytes[at];
      read += tensor.nbytes();
    }
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%.1f %llu\n", static_cast<double>(read) / seconds / 1e6, static_cast<unsigned long long>(sum));
}
