#include "families/groups.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "hcsmoe/error.h"

namespace hcsmoe {

void keep_best_groups(std::span<double> values, const RoutingRule& rule) {
  if (!std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); })) {
    throw Error("a correction bias of a router is not finite: the checkpoint is damaged");
  }
  if (rule.groups == 1) return;
  const size_t groups = static_cast<size_t>(rule.groups), size = values.size() / groups;
  std::vector<double> value_of(groups);
  for (size_t g = 0; g < groups; ++g) {
    double best = -INFINITY, second = -INFINITY;
    for (const double v : values.subspan(g * size, size)) {
      if (v > best) {
        second = best;
        best = v;
      } else if (v > second) {
        second = v;
      }
    }
    value_of[g] = best + second;
  }
  std::vector<size_t> order(groups);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return value_of[a] > value_of[b]; });
  for (size_t i = static_cast<size_t>(rule.top_groups); i < groups; ++i) {
    const auto outside = values.subspan(order[i] * size, size);
    std::fill(outside.begin(), outside.end(), -INFINITY);
  }
}

}  // namespace hcsmoe
