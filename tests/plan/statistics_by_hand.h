#pragma once
// Statistics written down in a test.

#include <ATen/ops/from_blob.h>

#include <cstdint>
#include <string>
#include <vector>

#include "hcsmoe/error.h"
#include "hcsmoe/plan.h"

namespace hcsmoe {

inline at::Tensor tensor_of(std::vector<double> values, std::vector<int64_t> shape) {
  return at::from_blob(values.data(), shape, at::kDouble).clone();
}

/// Layer 3 with these counts and nothing else.
inline ExpertStatistics statistics_with_counts(std::vector<int64_t> counts) {
  ExpertStatistics statistics;
  statistics.layer = 3;
  statistics.experts = static_cast<int64_t>(counts.size());
  statistics.tokens = 1;
  statistics.routed_count = at::from_blob(counts.data(), {statistics.experts}, at::kLong).clone();
  return statistics;
}

inline Recipe recipe_of(const std::string& method, int64_t count) {
  Recipe recipe;
  recipe.method = method;
  recipe.experts.count = count;
  return recipe;
}

inline std::string error_of(const ExpertStatistics& statistics, const Recipe& recipe) {
  try {
    plan_layer(statistics, recipe);
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

inline std::vector<std::vector<int64_t>> members_of(const LayerPlan& plan) {
  std::vector<std::vector<int64_t>> members;
  for (const Cluster& cluster : plan.clusters) members.push_back(cluster.members);
  return members;
}

using Members = std::vector<std::vector<int64_t>>;
using Experts = std::vector<int64_t>;

}  // namespace hcsmoe

#define EXPECT_HAS(text, part) EXPECT_NE(std::string(text).find(part), std::string::npos) << (text)
