#pragma once
// The two kinds of WeightStream, and what they share.

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "checkpoint/layer_layout.h"
#include "hcsmoe/weight_stream.h"

namespace hcsmoe {

/// What a stream brings, and which layer it is at.
struct StreamPlan {
  /// Layers before `first` are taken as having no tensors.
  StreamPlan(const Checkpoint&, std::vector<std::vector<std::string>> layers, int64_t first = 0);
  StreamPlan(StreamPlan&&) = default;

  /// Error unless the layer is the next one.
  void begin(int64_t layer);
  /// nullptr: the tensor belongs to no layer. Error: it belongs to another layer than the current one.
  const PlacedTensor* find(const std::string& name) const;

  struct Place {
    int64_t layer;
    const PlacedTensor* tensor;
  };
  const Checkpoint& checkpoint;
  std::vector<LayerLayout> layout;  // of each layer
  std::unordered_map<std::string, Place> place;
  int64_t first = 0;     // where it begins
  int64_t current = -1;  // the one before the first, at the beginning
};

std::unique_ptr<WeightStream> mapped_stream(StreamPlan, int local_rank, int local_size, const StreamOptions&);
std::unique_ptr<WeightStream> device_stream(StreamPlan, const Ranks&, DeviceLink&, const StreamOptions&);

}  // namespace hcsmoe
