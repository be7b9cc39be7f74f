#include "clustering/points.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "hcsmoe/error.h"
#include "support/vector_width.h"

namespace hcsmoe {
namespace {

constexpr int64_t lanes = 8;  // partial sums, whatever the processor's vectors

}  // namespace

HCSMOE_FOR_EACH_VECTOR_WIDTH
double squared_distance(const double* x, const double* y, int64_t columns) {
  double sums[lanes] = {};
  int64_t c = 0;
  for (; c + lanes <= columns; c += lanes) {
    for (int64_t l = 0; l < lanes; l++) sums[l] += (x[c + l] - y[c + l]) * (x[c + l] - y[c + l]);
  }
  for (int64_t l = 0; c + l < columns; l++) sums[l] += (x[c + l] - y[c + l]) * (x[c + l] - y[c + l]);
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

std::vector<double> points(std::span<const double> features, int64_t rows, int64_t columns, Metric metric) {
  if (rows < 1 || columns < 1 || features.size() != static_cast<size_t>(rows) * static_cast<size_t>(columns)) {
    throw Error("points: " + std::to_string(features.size()) + " values are not [" + std::to_string(rows) + ", " + std::to_string(columns) +
                "]");
  }
  std::vector<double> result(features.begin(), features.end());
  for (int64_t r = 0; r < rows; r++) {
    double* row = result.data() + r * columns;
    double largest = 0, squares = 0;
    for (int64_t c = 0; c < columns; c++) {
      if (!std::isfinite(row[c])) throw Error("feature " + std::to_string(c) + " of expert " + std::to_string(r) + " is not finite");
      largest = std::max(largest, std::abs(row[c]));
    }
    if (metric != Metric::cosine || largest == 0) continue;
    for (int64_t c = 0; c < columns; c++) squares += (row[c] / largest) * (row[c] / largest);
    const double norm = largest * std::sqrt(squares);
    for (int64_t c = 0; c < columns; c++) row[c] /= norm;
  }
  return result;
}

}  // namespace hcsmoe
