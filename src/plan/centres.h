#pragma once
// What methods with centres start from: the experts' mean outputs as points, and the experts that are the first centres.

#include <cstdint>
#include <span>
#include <vector>

#include "hcsmoe/plan.h"

namespace hcsmoe {

struct Points {
  std::vector<double> values;  // [E, columns]
  int64_t columns = 0;
  std::vector<double> rows_of(const std::vector<int64_t>& experts) const;
};
/// UserError where the recipe names another feature than expert_output: the others have distances, but no coordinates.
Points mean_output_points(const PlanInput&);

/// Positions in `experts` of the first centres, by recipe.init. rows: the experts' points.
std::vector<int64_t> first_centres(const PlanInput&, std::span<const double> rows, const std::vector<int64_t>& experts, int64_t clusters);

}  // namespace hcsmoe
