#include "hcsmoe/weight_stream.h"

#include <algorithm>

#include "checkpoint/streams.h"
#include "hcsmoe/error.h"
#include "support/free_memory.h"

namespace hcsmoe {

StreamPlan::StreamPlan(const Checkpoint& from, std::vector<std::vector<std::string>> layers, int64_t first_)
    : checkpoint(from), first(first_), current(first_ - 1) {
  for (const std::vector<std::string>& names : layers) {
    const auto layer = static_cast<int64_t>(layout.size());
    layout.push_back(layer < first ? LayerLayout{} : layer_layout(checkpoint, names));
    for (const PlacedTensor& tensor : layout.back().tensors) place.emplace(tensor.info->name, Place{layer, &tensor});
  }
}

void StreamPlan::begin(int64_t layer) {
  if (layer != current + 1 || layer >= static_cast<int64_t>(layout.size())) {
    throw Error("layer " + std::to_string(layer) + " of the weights is asked for after layer " + std::to_string(current));
  }
  current = layer;
}

const PlacedTensor* StreamPlan::find(const std::string& name) const {
  const auto found = place.find(name);
  if (found == place.end()) return nullptr;
  if (found->second.layer != current) {
    throw Error("tensor " + name + " is asked for while the weights of layer " + std::to_string(current) + " are there");
  }
  return found->second.tensor;
}

std::unique_ptr<WeightStream> stream_weights(const Checkpoint& checkpoint, std::vector<std::vector<std::string>> layers, const Ranks& ranks,
                                             const StreamOptions& options) {
  StreamPlan plan(checkpoint, std::move(layers), options.first_layer);
  if (ranks.device()) return device_stream(std::move(plan), ranks, *ranks.device(), options);
  return mapped_stream(std::move(plan), ranks.local_rank(), ranks.local_size(), options);
}

std::unique_ptr<WeightStream> stream_weights(const Checkpoint& checkpoint, std::vector<std::vector<std::string>> layers) {
  return mapped_stream({checkpoint, std::move(layers)}, 0, 1, {});
}

uint64_t default_read_ahead() { return free_memory() / 4; }

}  // namespace hcsmoe
