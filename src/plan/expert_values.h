#pragma once
// What the methods take from the statistics: checked, as plain doubles.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "hcsmoe/statistics.h"

namespace hcsmoe {

/// The values of a float64 statistic [E, ...]. UserError where it was not collected, or holds a value that is not finite.
std::span<const double> expert_values(const ExpertStatistics&, const at::Tensor&, const std::string& name, int64_t values);

/// The mean output of each expert over all calibration tokens: [E, D].
std::vector<double> mean_outputs(const ExpertStatistics&);

/// value / routed_count; 0 for an expert that was never used.
std::vector<double> mean_over_routed(const ExpertStatistics&, std::span<const double> value);

/// Of two vectors by their products with themselves and each other; 0 where one of them is zero, 1 where both are.
double cosine(double own, double other, double product);

/// Cosine of two experts' router logits over all calibration tokens: [E, E].
std::vector<double> logit_cosines(const ExpertStatistics&);

/// The values of a float32 statistic of sampled tokens [S, columns]. UserError as expert_values.
std::span<const float> sample_values(const ExpertStatistics&, const at::Tensor&, const std::string& name, int64_t columns);

/// sum over the sampled tokens of <E_e(x), E_f(x)>: [E, E].
std::vector<double> sampled_output_gram(const ExpertStatistics&);

}  // namespace hcsmoe
