#include <algorithm>
#include <cmath>
#include <string>

#include "clustering/points.h"
#include "hcsmoe/clustering.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

constexpr int most_rounds = 300;
/// The mean of the rows `members`, added in their order.
template <class Members>
std::vector<double> mean(const std::vector<double>& points, int64_t columns, const Members& members) {
  std::vector<double> result(static_cast<size_t>(columns), 0.0);
  for (const int64_t r : members) {
    for (int64_t c = 0; c < columns; c++) result[c] += points[r * columns + c];
  }
  for (double& x : result) x /= static_cast<double>(members.size());
  return result;
}

}  // namespace

std::vector<int64_t> farthest_first(std::span<const double> features, int64_t rows, int64_t columns, int64_t count, Metric metric) {
  if (count < 1 || count > rows) throw Error("farthest_first: no " + std::to_string(count) + " of " + std::to_string(rows) + " rows");
  const std::vector<double> x = points(features, rows, columns, metric);
  std::vector<int64_t> all(static_cast<size_t>(rows));
  for (int64_t r = 0; r < rows; r++) all[r] = r;
  const std::vector<double> middle = mean(x, columns, all);
  std::vector<double> distance(static_cast<size_t>(rows));  // to the middle, then to the nearest chosen row; -1: chosen
  for (int64_t r = 0; r < rows; r++) distance[r] = squared_distance(x.data() + r * columns, middle.data(), columns);
  std::vector<int64_t> chosen = {std::min_element(distance.begin(), distance.end()) - distance.begin()};
  std::fill(distance.begin(), distance.end(), HUGE_VAL);
  while (static_cast<int64_t>(chosen.size()) < count) {
    const double* last = x.data() + chosen.back() * columns;
    distance[chosen.back()] = -1;
    for (int64_t r = 0; r < rows; r++) distance[r] = std::min(distance[r], squared_distance(x.data() + r * columns, last, columns));
    chosen.push_back(std::max_element(distance.begin(), distance.end()) - distance.begin());
  }
  return chosen;
}

std::vector<std::vector<int64_t>> kmeans(std::span<const double> features, int64_t rows, int64_t columns, std::vector<int64_t> first,
                                         Metric metric) {
  const std::vector<double> x = points(features, rows, columns, metric);
  const auto K = static_cast<int64_t>(first.size());
  if (K < 1 || K > rows) throw Error("kmeans: " + std::to_string(rows) + " experts cannot make " + std::to_string(K) + " clusters");
  std::vector<std::vector<double>> centres;
  for (const int64_t r : first) centres.emplace_back(x.begin() + r * columns, x.begin() + (r + 1) * columns);

  std::vector<int64_t> label(static_cast<size_t>(rows), -1);
  std::vector<std::vector<int64_t>> members;
  for (int round = 0; round < most_rounds; round++) {
    const std::vector<int64_t> before = label;
    std::vector<double> distance(static_cast<size_t>(rows));  // to the row's own centre
    std::vector<int64_t> size(static_cast<size_t>(K), 0);
    for (int64_t r = 0; r < rows; r++) {
      for (int64_t k = 0; k < K; k++) {
        const double d = squared_distance(x.data() + r * columns, centres[k].data(), columns);
        if (k == 0 || d < distance[r]) distance[r] = d, label[r] = k;
      }
      size[label[r]]++;
    }
    for (int64_t k = 0; k < K; k++) {
      if (size[k] > 0) continue;
      int64_t farthest = -1;
      for (int64_t r = 0; r < rows; r++) {
        if (size[label[r]] > 1 && (farthest < 0 || distance[r] > distance[farthest])) farthest = r;
      }
      size[label[farthest]]--;
      label[farthest] = k;
      distance[farthest] = 0;
      size[k] = 1;
    }
    if (label == before) break;
    members.assign(static_cast<size_t>(K), {});
    for (int64_t r = 0; r < rows; r++) members[label[r]].push_back(r);
    for (int64_t k = 0; k < K; k++) centres[k] = mean(x, columns, members[k]);
  }
  std::sort(members.begin(), members.end());
  return members;
}

}  // namespace hcsmoe
