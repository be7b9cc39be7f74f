#pragma once
// What the methods take from the statistics: checked, as plain doubles.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "hcsmoe/config.h"
#include "hcsmoe/statistics.h"

namespace hcsmoe {

/// The values of a float64 statistic [E, ...]. UserError where it was not collected, or holds a value that is not finite.
std::span<const double> expert_values(const ExpertStatistics&, const at::Tensor&, const std::string& name, int64_t values);

/// The mean output of each expert over all calibration tokens: [E, D].
std::vector<double> mean_outputs(const ExpertStatistics&);

/// value / routed_count; 0 for an expert that was never used.
std::vector<double> mean_over_routed(const ExpertStatistics&, std::span<const double> value);

/// Cosine of two experts' router logits over all calibration tokens: [E, E]. 0 where an expert's logits are all zero, 1 for two of these.
std::vector<double> logit_cosines(const ExpertStatistics&);

/// Distances of the experts' router logits over all calibration tokens, condensed as pairwise_distances gives them: euclidean
/// sqrt(sum_x (z_e - z_f)^2), cosine 1 - cos.
std::vector<double> logit_distances(const ExpertStatistics&, Metric);

}  // namespace hcsmoe
