#include "hcsmoe/device_memory.h"

#include <algorithm>

#include "hcsmoe/error.h"
#include "hcsmoe/log.h"

namespace hcsmoe {
namespace {

constexpr double library_bytes = 2e9;
constexpr int64_t rows_of_block = 8192;       // of a product on a GPU
constexpr int64_t rows_of_attention = 32768;  // of the sequences that attention runs on at a time

}  // namespace

DeviceSizes device_sizes(const Checkpoint& checkpoint, const ModelDescription& model, int64_t sequences_of_rank, int64_t length,
                         int64_t compute_bytes) {
  DeviceSizes sizes;
  for (int64_t l = 0; l < model.layers; ++l) {
    int64_t bytes = 0;
    for (const std::string& name : layer_tensor_names(model, l)) bytes += static_cast<int64_t>(checkpoint.info(name).bytes());
    sizes.layer_bytes = std::max(sizes.layer_bytes, bytes);
  }
  sizes.hidden = model.hidden_size;
  sizes.intermediate = std::max({model.expert_intermediate, model.shared_intermediate, model.dense_intermediate});
  sizes.experts = model.experts;
  sizes.expert_intermediate = model.expert_intermediate;
  sizes.attention_channels = 2 * (model.heads + model.key_value_heads) * model.head_size;
  sizes.sequences = sequences_of_rank;
  sizes.length = length;
  sizes.compute_bytes = compute_bytes;
  const DType& stored = checkpoint.info(expert_tensor_name(model, model.moe_layers().front(), 0, ExpertPart::gate)).dtype;
  sizes.converts = stored.torch != (compute_bytes == 2 ? at::kBFloat16 : at::kFloat);
  return sizes;
}

DeviceMemory device_memory(const DeviceSizes& s) {
  const auto product = [](auto... factors) { return (static_cast<double>(factors) * ...); };
  const int64_t N = s.sequences * s.length, element = s.compute_bytes, sweeps = s.propagates ? 2 : 1;
  const int64_t rows = std::min(N, rows_of_block), attention_rows = std::min(N, std::max(rows_of_attention, s.length));
  DeviceMemory memory;
  memory.weights = product(2 * sweeps, s.layer_bytes);
  if (s.converts) memory.converted = product(sweeps, element, s.hidden, s.attention_channels + 3 * s.intermediate);
  // Residual stream, block input (also rounded) and block output; at worst every token goes to one expert.
  memory.tokens = product(sweeps, N, s.hidden, 12 + (element == 2 ? 2 : 0)) + product(sweeps, N, s.expert_intermediate, element);
  // Gate, up and product of a block, and as much again in float32 while they are made; attention likewise.
  memory.blocks = product(sweeps, rows, 2 * s.intermediate + s.hidden, element + 4) +
                  product(sweeps, attention_rows, s.hidden + s.attention_channels, element + 4);
  memory.sums = product(24, s.experts, s.expert_intermediate + s.experts);
  memory.libraries = library_bytes;
  return memory;
}

void check_fits(const DeviceSizes& sizes, double bytes, int ranks) {
  const DeviceMemory memory = device_memory(sizes);
  if (memory.total() <= bytes) return;
  const std::string found = "a GPU of " + format_bytes(bytes) + " is too small for this run, which holds " + format_bytes(memory.total()) +
                            " on each: two layers of weights " + format_bytes(memory.weights) + ", hidden states and one expert's tokens " +
                            format_bytes(memory.tokens) + ", what is computed at a time " + format_bytes(memory.blocks + memory.converted);
  DeviceSizes fewer = sizes;
  while (fewer.sequences > 0 && device_memory(fewer).total() > bytes) --fewer.sequences;
  if (fewer.sequences > 0) {
    const int64_t most = fewer.sequences * ranks, enough = (sizes.sequences * ranks + fewer.sequences - 1) / fewer.sequences;
    throw UserError(found, "calibration.sequences of at most " + std::to_string(most) + " fit " + std::to_string(ranks) +
                               (ranks == 1 ? " rank, or start " : " ranks, or start ") + std::to_string(enough) + " ranks");
  }
  DeviceSizes least = sizes;
  least.sequences = 1;
  std::string hint = "even one sequence a rank takes " + format_bytes(device_memory(least).total()) + ": use GPUs with more memory";
  if (sizes.propagates) hint += ", or compression.propagate: original, which holds half of the weights";
  if (sizes.length > 512) hint += ", or a smaller calibration.length";
  throw UserError(found, hint + ", or device.type: cpu");
}

}  // namespace hcsmoe
