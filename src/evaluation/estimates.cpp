#include <cmath>
#include <numeric>

#include "hcsmoe/evaluation.h"

namespace hcsmoe {

Estimate ratio_of_sums(const std::vector<double>& numerators, const std::vector<double>& denominators) {
  const size_t n = numerators.size();
  const double above = std::accumulate(numerators.begin(), numerators.end(), 0.0);
  const double below = std::accumulate(denominators.begin(), denominators.end(), 0.0);
  Estimate result{above / below, NAN};
  if (n < 2) return result;
  double squares = 0;
  for (size_t i = 0; i < n; ++i) squares += std::pow(numerators[i] - result.value * denominators[i], 2);
  result.error = std::sqrt(squares * static_cast<double>(n) / static_cast<double>(n - 1)) / below;
  return result;
}

Estimate share_of_right(int64_t right, int64_t items) {
  const double p = static_cast<double>(right) / static_cast<double>(items);
  return {p, items < 2 ? NAN : std::sqrt(p * (1 - p) / static_cast<double>(items - 1))};
}

Estimate mean_of(const std::vector<Estimate>& values) {
  if (values.empty()) return {};
  double sum = 0, squares = 0;
  for (const Estimate& value : values) {
    sum += value.value;
    squares += value.error * value.error;
  }
  const auto n = static_cast<double>(values.size());
  return {sum / n, std::sqrt(squares) / n};
}

}  // namespace hcsmoe
