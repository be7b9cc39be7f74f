#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "forward/products.h"
#include "hcsmoe/ranks.h"
#include "statistics/fixed_point.h"

namespace hcsmoe {

/// The sum of value(row), of order 1, over rows 0 .. n of this rank and those of all other ranks: the same however they are dealt. Infinite
/// where a value is not finite, as a trial step may make it. value runs on any thread. Collective.
template <class Value>
double sum_over_rows(int64_t n, const Ranks& ranks, const Value& value) {
  std::vector<int64_t> buffer(FixedPointSums::buffer_size(1) + 1);  // and how many values were not finite
  const auto sum_in = [](std::vector<int64_t>& some) { return FixedPointSums(std::span(some).first(some.size() - 1)); };
  std::mutex mutex;
  for_each_task(blocks_of(n, row_block), [&](int64_t b, int) {
    std::vector<int64_t> part_buffer(buffer.size());
    for (int64_t row = b * row_block; row < std::min(n, (b + 1) * row_block); ++row) {
      if (const double found = value(row); std::fabs(found) < largest_addend) {
        sum_in(part_buffer).add(0, found);
      } else {
        ++part_buffer.back();
      }
    }
    const std::lock_guard lock(mutex);
    for (size_t i = 0; i < buffer.size(); ++i) buffer[i] += part_buffer[i];
  });
  ranks.all_reduce_sum(buffer);
  return buffer.back() > 0 ? INFINITY : sum_in(buffer).value(0);
}

}  // namespace hcsmoe
