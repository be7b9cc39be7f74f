#pragma once
// What a sweep holds on a GPU, by arithmetic alone, so that `inspect` can say on any machine whether a run fits a GPU of a given size.

#include <cstdint>
#include <string>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/families.h"

namespace hcsmoe {

/// What of a model and a run it depends on.
struct DeviceSizes {
  int64_t layer_bytes = 0;   // of the largest layer's weights, as stored
  int64_t hidden = 0;        // D
  int64_t intermediate = 0;  // the largest of experts, shared expert and dense block
  int64_t experts = 0, expert_intermediate = 0;
  int64_t attention_channels = 0;     // of queries, keys, values and heads' outputs together
  int64_t sequences = 0, length = 0;  // of a rank: at most ceil(S / P)
  int64_t compute_bytes = 4;          // an element in the type of computation
  bool converts = false;              // stored in another type
  bool propagates = false;            // compression.propagate: compressed, which has two sweeps
};
DeviceSizes device_sizes(const Checkpoint&, const ModelDescription&, int64_t sequences_of_rank, int64_t length, int64_t compute_bytes);

/// Bytes.
struct DeviceMemory {
  double weights = 0;    // two layers a sweep
  double converted = 0;  // the attention's and one expert's, in the type of computation
  double tokens = 0;     // hidden states, and the units of one expert's tokens
  double blocks = 0;     // rows that are computed at a time
  double sums = 0;
  double libraries = 0;  // CUDA, its kernels, NCCL
  double total() const { return weights + converted + tokens + blocks + sums + libraries; }
};
DeviceMemory device_memory(const DeviceSizes&);

/// UserError: it does not fit `bytes` of a GPU; says what is too large and which keys to change to what.
void check_fits(const DeviceSizes&, double bytes, int ranks);

}  // namespace hcsmoe
