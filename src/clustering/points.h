#pragma once
// Rows as points, for clustering by centres.

#include <cstdint>
#include <span>
#include <vector>

#include "hcsmoe/config.h"

namespace hcsmoe {

/// ||x - y||^2
double squared_distance(const double* x, const double* y, int64_t columns);

/// The rows as they are compared: divided by their norms under cosine (zero rows stay zero). Throws Error on a non-finite feature.
std::vector<double> points(std::span<const double> features, int64_t rows, int64_t columns, Metric metric);

}  // namespace hcsmoe
