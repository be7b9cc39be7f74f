#include <algorithm>
#include <cmath>
#include <string>

#include "clustering/points.h"
#include "hcsmoe/clustering.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

constexpr int most_rounds = 1000;
constexpr double least_change = 1e-9;

/// distances: squared, [K] of one row; becomes the row's memberships.
void to_memberships(std::vector<double>& distances) {
  const auto on_centres = std::count(distances.begin(), distances.end(), 0.0);
  double sum = 0;
  for (double& d : distances) {
    d = on_centres > 0 ? (d == 0 ? 1.0 : 0.0) : 1 / d;
    sum += d;
  }
  for (double& d : distances) d /= sum;
}

}  // namespace

std::vector<std::vector<double>> fuzzy_cmeans(std::span<const double> features, int64_t rows, int64_t columns, std::vector<int64_t> first,
                                              Metric metric) {
  const std::vector<double> x = points(features, rows, columns, metric);
  const auto K = static_cast<int64_t>(first.size());
  if (K < 1 || K > rows) throw Error("fuzzy_cmeans: " + std::to_string(rows) + " experts cannot make " + std::to_string(K) + " clusters");
  std::vector<std::vector<double>> centres, memberships(static_cast<size_t>(K), std::vector<double>(static_cast<size_t>(rows), 0.0));
  for (const int64_t r : first) centres.emplace_back(x.begin() + r * columns, x.begin() + (r + 1) * columns);

  std::vector<double> of_row(static_cast<size_t>(K));
  for (int round = 0; round < most_rounds; round++) {
    double change = 0;
    for (int64_t r = 0; r < rows; r++) {
      for (int64_t k = 0; k < K; k++) of_row[k] = squared_distance(x.data() + r * columns, centres[k].data(), columns);
      to_memberships(of_row);
      for (int64_t k = 0; k < K; k++) {
        change = std::max(change, std::abs(of_row[k] - memberships[k][r]));
        memberships[k][r] = of_row[k];
      }
    }
    if (change <= least_change) break;
    for (int64_t k = 0; k < K; k++) {
      double sum = 0;
      for (const double u : memberships[k]) sum += u * u;
      if (sum == 0) throw Error("fuzzy_cmeans: cluster " + std::to_string(k) + " has no members");
      std::fill(centres[k].begin(), centres[k].end(), 0.0);
      for (int64_t r = 0; r < rows; r++) {
        const double weight = memberships[k][r] * memberships[k][r] / sum;
        for (int64_t c = 0; c < columns; c++) centres[k][c] += weight * x[r * columns + c];
      }
    }
  }
  return memberships;
}

}  // namespace hcsmoe
