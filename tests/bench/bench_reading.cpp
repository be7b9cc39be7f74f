// Reads a checkpoint as a sweep does, and nothing else: the layer ahead is asked for, then every page of a layer is touched where it is
// mapped, then it is given back. Prints MB/s. tests/bench/disk.py runs it.
//
//     bench_reading MODEL
#include <chrono>
#include <cstdio>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/families.h"

using namespace hcsmoe;

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: bench_reading MODEL\n");
    return 2;
  }
  const Checkpoint checkpoint = Checkpoint::open(argv[1]);
  const ModelDescription model = describe_model(checkpoint);
  const auto ask_for = [&](int64_t layer) {
    for (const std::string& name : layer_tensor_names(model, layer)) checkpoint.will_need(name);
  };
  const auto start = std::chrono::steady_clock::now();
  uint64_t read = 0, sum = 0;
  ask_for(0);
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    if (layer + 1 < model.layers) ask_for(layer + 1);
    for (const std::string& name : layer_tensor_names(model, layer)) {
      const std::span<const std::byte> bytes = checkpoint.bytes(name);
      for (size_t at = 0; at < bytes.size(); at += 4096) sum += static_cast<uint64_t>(bytes[at]);
      read += bytes.size();
      checkpoint.done_with(name);
    }
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%.1f %llu\n", static_cast<double>(read) / seconds / 1e6, static_cast<unsigned long long>(sum));
}
