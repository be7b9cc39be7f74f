#pragma once
// How evenly a layer's experts are used, and which of them are alike: what `inspect` says of the statistics in the work folder.

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/families.h"
#include "hcsmoe/statistics.h"

namespace hcsmoe {

/// Of the choices of the router on the calibration tokens: each of T tokens chooses top-k experts.
struct LayerUsage {
  int64_t layer = 0, experts = 0, tokens = 0;
  double busiest = 0, least = 0;  // shares of all choices, of the most and the least chosen expert
  int64_t busiest_expert = 0, least_expert = 0;
  int64_t unused = 0;  // experts that no token chose
  double gini = 0;     // sum_ij |c_i - c_j| / (2 E sum_i c_i) of the counts c: 0 all alike, (E - 1) / E one does all
  /// Of mean outputs over all tokens, |o_i - o_j| / max(|o_i|, |o_j|); absent where they were not collected.
  struct Alike {
    double nearest = 0;  // the least
    std::pair<int64_t, int64_t> pair;
    int64_t experts = 0;  // that have another one nearer than alike_below
  };
  std::optional<Alike> alike;
};
inline constexpr double alike_below = 0.01;

LayerUsage usage_of(const ExpertStatistics&);
/// Lines of a table, its head first.
std::vector<std::string> usage_table(const std::vector<LayerUsage>&);

/// Experts of one layer whose gate, up and down are equal byte for byte, in groups of two or more. Reads all of the layer's experts.
std::vector<std::vector<int64_t>> equal_experts(const Checkpoint&, const ModelDescription&, int64_t layer);

}  // namespace hcsmoe
