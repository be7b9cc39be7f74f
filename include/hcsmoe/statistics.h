#pragma once
// What is known of a layer's experts after the calibration pass: sums and counts over calibration tokens, never means, so that they add
// correctly over unequal shares (docs/architecture.md, "Statistics"). Collected by the layer sweep, reduced over ranks as order-free sums,
// saved as one HDF5 file a layer.
// Letters: T tokens, D hidden size, E experts, S sampled tokens.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <string>

namespace hcsmoe {

/// A statistic that is collected only where something needs it. The others cost next to nothing and are always collected.
enum class Statistic { output_sum, sample_input, token_output_gram, output_cka, weight_gram, weight_cka };
inline constexpr Statistic optional_statistics[] = {Statistic::output_sum, Statistic::sample_input, Statistic::token_output_gram,
                                                    Statistic::output_cka, Statistic::weight_gram,  Statistic::weight_cka};
std::string to_string(Statistic);

class StatisticSet {
 public:
  constexpr StatisticSet() = default;
  constexpr StatisticSet(std::initializer_list<Statistic> statistics) {
    for (const Statistic statistic : statistics) bits_ |= bit(statistic);
  }
  static StatisticSet all();

  constexpr bool has(Statistic statistic) const { return (bits_ & bit(statistic)) != 0; }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr StatisticSet& operator|=(StatisticSet other) {
    bits_ |= other.bits_;
    return *this;
  }
  constexpr StatisticSet without(StatisticSet other) const {
    StatisticSet rest;
    rest.bits_ = bits_ & ~other.bits_;
    return rest;
  }
  bool operator==(const StatisticSet&) const = default;
  std::string names() const;  // "output_sum, weight_gram"
  constexpr unsigned bits() const { return bits_; }
  static constexpr StatisticSet of_bits(unsigned bits) {
    StatisticSet set;
    set.bits_ = bits;
    return set;
  }

 private:
  static constexpr unsigned bit(Statistic statistic) { return 1u << static_cast<unsigned>(statistic); }
  unsigned bits_ = 0;
};

/// Tensors are on the CPU. An undefined tensor was not collected.
struct ExpertStatistics {
  int64_t layer = 0;
  int64_t experts = 0;                  // E
  int64_t tokens = 0;                   // T
  at::Tensor routed_count;              // int64 [E]     tokens that chose e in their top-k
  at::Tensor routed_weight_sum;         // float64 [E]   final routing weight over those tokens
  at::Tensor router_probability_sum;    // float64 [E]   score (softmax or sigmoid) over all tokens
  at::Tensor output_sum;                // float64 [E, D] E_e(x) over ALL tokens, not weighted by the router
  at::Tensor routed_output_norm_sum;    // float64 [E]   ||E_e(x)|| over tokens routed to e
  at::Tensor weighted_output_norm_sum;  // float64 [E]   g_e(x) ||E_e(x)|| over tokens routed to e
  at::Tensor router_logit_sum;          // float64 [E]   z_e over all tokens
  at::Tensor router_logit_gram;         // float64 [E, E] z_e z_f over all tokens

  // Of S tokens, evenly spaced over all of them (calibration.sample); none of them is a sum.
  at::Tensor sample_input;       // float32 [S, D]  what router and experts read; on every rank where it was just collected
  at::Tensor sample_logits;      // float32 [S, E]  router logits; comes with token_output_gram
  at::Tensor token_output_gram;  // float32 [S, E(E+1)/2]  <E_e(x), E_f(x)> for e <= f: 0-0, 0-1, ..., 1-1, ...
  at::Tensor output_cka;         // float64 [E, E]  linear CKA of the outputs on at most 512 of them

  // Of the checkpoint's weights alone.
  at::Tensor weight_gram;  // float64 [E, E]  <w_e, w_f>, w = gate|up|down flattened
  at::Tensor weight_cka;   // float64 [E, E]  linear CKA of gate^T|up^T|down [D, 3F]: whatever the order of an expert's units
};

/// Which optional ones are there.
StatisticSet collected(const ExpertStatistics&);

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
