#include "forward/kernels.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

namespace hcsmoe {

RoutedRows::Range RoutedRows::of(int64_t expert) const {
  const auto at = static_cast<size_t>(expert * row_blocks);
  return {first[at], first[at + static_cast<size_t>(row_blocks)] - first[at]};
}

RoutedRows::Range RoutedRows::of(int64_t expert, int64_t row_block) const {
  const auto at = static_cast<size_t>(expert * row_blocks + row_block);
  return {first[at], first[at + 1] - first[at]};
}

int64_t RoutedRows::largest() const {
  int64_t most = 0;
  const auto step = static_cast<size_t>(row_blocks);
  for (size_t at = step; step > 0 && at < first.size(); at += step) most = std::max(most, first[at] - first[at - step]);
  return most;
}

LikelihoodRows LikelihoodRows::of(int64_t begin, int64_t n) const {
  return {highest.narrow(0, begin, n), sum.narrow(0, begin, n), top.narrow(0, begin, n)};
}

LikelihoodRows likelihood_rows(int64_t n, const Compute& compute) {
  const auto lowest = -std::numeric_limits<double>::infinity();
  return {at::full({n}, lowest, compute.type(at::kDouble)), at::zeros({n}, compute.type(at::kDouble)),
          at::full({n}, -1, compute.type(at::kLong))};
}

}  // namespace hcsmoe
