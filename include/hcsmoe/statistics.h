#pragma once
// What is known of a layer's experts after the calibration pass: sums and counts over calibration tokens, never means, so that they add
// correctly over unequal shares (docs/architecture.md, "Statistics"). Collected by the layer sweep, reduced over ranks as order-free sums,
// saved as one HDF5 file a layer.
// Letters: T tokens, D hidden size, E experts.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>

namespace hcsmoe {

/// Tensors are on the CPU. An undefined tensor was not collected.
struct ExpertStatistics {
  int64_t layer = 0;
  int64_t experts = 0;                  // E
  int64_t tokens = 0;                   // T
  at::Tensor routed_count;              // int64 [E]     tokens that chose e in their top-k
  at::Tensor routed_weight_sum;         // float64 [E]   final routing weight over those tokens
  at::Tensor router_probability_sum;    // float64 [E]   softmax score over all tokens
  at::Tensor output_sum;                // float64 [E, D] E_e(x) over ALL tokens, not weighted by the router
  at::Tensor routed_output_norm_sum;    // float64 [E]   ||E_e(x)|| over tokens routed to e
  at::Tensor weighted_output_norm_sum;  // float64 [E]   g_e(x) ||E_e(x)|| over tokens routed to e
  at::Tensor router_logit_sum;          // float64 [E]   z_e over all tokens
  at::Tensor router_logit_gram;         // float64 [E, E] z_e z_f over all tokens
};

/// What the statistics were collected from. Statistics are reused only where this is equal.
struct StatisticsOrigin {
  std::string checkpoint;   // Checkpoint::fingerprint()
  std::string calibration;  // ids_fingerprint()
  std::string dtype;        // of computation: "float32" or "bfloat16"
  bool operator==(const StatisticsOrigin&) const = default;
};

std::filesystem::path statistics_file(const std::filesystem::path& work, int64_t layer);  // WORK/statistics/layer_0003.h5
/// Atomic: temporary name, fsync, rename. Datasets by the names above, each with a checksum.
void save_statistics(const std::filesystem::path& file, const ExpertStatistics&, const StatisticsOrigin&);
/// Throws UserError: not there, not ours, damaged (checksum), or shapes that do not fit together.
ExpertStatistics load_statistics(const std::filesystem::path& file, StatisticsOrigin* origin = nullptr);

}  // namespace hcsmoe
