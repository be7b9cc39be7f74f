#pragma once
// A function of the router rows that is a sum over tokens, and its gradient: group by group, in order-free sums.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm_ops.h>

#include <cstdint>
#include <mutex>
#include <vector>

#include "forward/products.h"
#include "hcsmoe/ranks.h"
#include "statistics/fixed_point.h"

namespace hcsmoe {

/// Sums value(row, logits [K], slope [K]) over the rows of input [n, D] (groups of rows by group_end); logits = input rows^T, and value
/// writes its derivative by the logits to slope. Adds the derivative by the rows to gradient [K, D]. Values and gradients are of order 1 a
/// token. Divided by `count`. Collective.
template <class Value>
double sum_over_tokens(const at::Tensor& input, const std::vector<int64_t>& group_end, const at::Tensor& rows, double count,
                       const Ranks& ranks, double* gradient, const Value& value) {
  const int64_t K = rows.size(0), D = rows.size(1);
  std::vector<int64_t> buffer(FixedPointSums::buffer_size(static_cast<size_t>(K * D + 1)));
  FixedPointSums sums(buffer);
  std::mutex mutex;
  for_each_task(static_cast<int64_t>(group_end.size()), [&](int64_t g, int) {
    const int64_t begin = g == 0 ? 0 : group_end[static_cast<size_t>(g - 1)], n = group_end[static_cast<size_t>(g)] - begin;
    if (n == 0) return;
    const at::Tensor x = input.narrow(0, begin, n);  // [n, D]
    at::Tensor logits = at::empty({n, K}, at::kFloat), slope = at::empty({n, K}, at::kFloat);
    at::_ops::mm_out::call(x, rows.t(), logits);
    double total = 0;
    for (int64_t r = 0; r < n; ++r) total += value(begin + r, const_data<float>(logits) + r * K, data<float>(slope) + r * K);
    at::Tensor part = at::empty({K, D}, at::kFloat);
    at::_ops::mm_out::call(slope.t(), x, part);
    const std::lock_guard lock(mutex);
    for (int64_t i = 0; i < K * D; ++i) sums.add(static_cast<size_t>(i), static_cast<double>(const_data<float>(part)[i]));
    sums.add(static_cast<size_t>(K * D), total);
  });
  ranks.all_reduce_sum(buffer);
  for (int64_t i = 0; i < K * D; ++i) gradient[i] += sums.value(static_cast<size_t>(i)) / count;
  return sums.value(static_cast<size_t>(K * D)) / count;
}

}  // namespace hcsmoe
