#pragma once
// The weights of a model, layer by layer in their order, brought before they are asked for. Reading goes on ahead on a thread of its own,
// as far as `read_ahead` bytes allow; who computes asks for tensors by name and does not know where they come from:
//
//   CPUs  every rank uses the mapped files in place. The ranks of a node read a layer into the page cache together, each its share.
//   GPUs  the owner of a layer (Ranks::owner_of) reads it into pinned memory, copies it to its GPU and broadcasts it to the others, while
//         the layer before is computed. All ranks read at the same time, each its own layers. A GPU holds two layers.

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/device_link.h"
#include "hcsmoe/ranks.h"
#include "hcsmoe/trace.h"

namespace hcsmoe {

struct StreamOptions {
  uint64_t read_ahead = 0;              // bytes of the node, all its ranks together; the least that works is used where it is less
  uint64_t piece = uint64_t{32} << 20;  // bytes that are read, copied and sent at a time
  std::chrono::milliseconds limit = longest_wait;
  int64_t first_layer = 0;  // the layers before are not read
  Trace* trace = nullptr;   // where the reading thread has a row
};

class WeightStream {
 public:
  virtual ~WeightStream() = default;
  /// The next layer: first_layer, then one after the other. Its tensors can be had from here on until the next call. Waits until the layer
  /// is there. On GPUs collective. Throws what reading met, as it was: UserError, a file ends early or its disk fails.
  virtual void begin_layer(int64_t layer) = 0;
  /// A tensor of this layer, or one that belongs to no layer, on the device of computation, as the checkpoint has it.
  virtual at::Tensor tensor(const std::string& name) const = 0;
};

/// layers: the names of each layer's tensors. On the GPUs of `ranks`, if they have any; then collective, and the ranks' checkpoints must be
/// known to be alike (tensor_lines). The checkpoint and the ranks must outlive it.
std::unique_ptr<WeightStream> stream_weights(const Checkpoint&, std::vector<std::vector<std::string>> layers, const Ranks& ranks,
                                             const StreamOptions& options);
/// Of one process that has no ranks: `piece` and `limit` as by default.
std::unique_ptr<WeightStream> stream_weights(const Checkpoint&, std::vector<std::vector<std::string>> layers);

/// What read_ahead is where the configuration leaves it open: a quarter of the memory that is free on this node.
uint64_t default_read_ahead();

}  // namespace hcsmoe
