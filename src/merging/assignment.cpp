// Compiled with -O3 -ffp-contract=off (src/CMakeLists.txt): the loops over columns are written in lanes, so that the compiler vectorises
// them, and give the same answer for any vector width.
//
// In terms of prices: a column costs price[j], a row wants the column of the largest score - price, and in the end every row has one that
// it wants. The prices prove that the assignment is the best one.

#include "merging/assignment.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "hcsmoe/error.h"
#include "support/vector_width.h"

#define HCSMOE_INLINE inline __attribute__((always_inline))

namespace hcsmoe {
namespace {

constexpr int64_t lanes = 8;
constexpr double infinity = std::numeric_limits<double>::infinity();

/// Of a row: the columns of the largest and the second largest score - price.
struct TwoBest {
  double value = -infinity, second_value = -infinity;
  int64_t column = -1, second_column = -1;

  HCSMOE_INLINE void add(double candidate, int64_t j) {
    if (candidate > value || (candidate == value && j < column)) {
      second_value = value;
      second_column = column;
      value = candidate;
      column = j;
    } else if (candidate > second_value || (candidate == second_value && j < second_column)) {
      second_value = candidate;
      second_column = j;
    }
  }
};

HCSMOE_FOR_EACH_VECTOR_WIDTH
TwoBest two_best(const float* __restrict scores, const double* __restrict price, int64_t n) {
  double value[lanes], second_value[lanes];
  int64_t column[lanes], second_column[lanes];
  for (int64_t l = 0; l < lanes; ++l) {
    value[l] = second_value[l] = -infinity;
    column[l] = second_column[l] = std::numeric_limits<int64_t>::max();
  }
  const int64_t whole = n / lanes * lanes;
  for (int64_t j = 0; j < whole; j += lanes) {
    for (int64_t l = 0; l < lanes; ++l) {
      const double candidate = static_cast<double>(scores[j + l]) - price[j + l];
      const bool first = candidate > value[l], second = candidate > second_value[l];
      second_value[l] = first ? value[l] : second ? candidate : second_value[l];
      second_column[l] = first ? column[l] : second ? j + l : second_column[l];
      value[l] = first ? candidate : value[l];
      column[l] = first ? j + l : column[l];
    }
  }
  TwoBest best;
  for (int64_t l = 0; l < lanes; ++l) {
    best.add(value[l], column[l]);
    best.add(second_value[l], second_column[l]);
  }
  for (int64_t j = whole; j < n; ++j) best.add(static_cast<double>(scores[j]) - price[j], j);
  return best;
}

/// The column of the least value so far, in lanes.
struct Least {
  double value[lanes];
  int64_t column[lanes];

  HCSMOE_INLINE Least() {
    for (int64_t l = 0; l < lanes; ++l) {
      value[l] = infinity;
      column[l] = std::numeric_limits<int64_t>::max();
    }
  }
  HCSMOE_INLINE void add(int64_t l, double candidate, int64_t j) {
    const bool less = candidate < value[l];
    value[l] = less ? candidate : value[l];
    column[l] = less ? j : column[l];
  }
  HCSMOE_INLINE void fold() {  // into the first lane
    for (int64_t l = 1; l < lanes; ++l) {
      const bool less = value[l] < value[0] || (value[l] == value[0] && column[l] < column[0]);
      value[0] = less ? value[l] : value[0];
      column[0] = less ? column[l] : column[0];
    }
  }
};

/// Shortest paths grow through the row `from`: distance[j] = min(distance[j], price[j] - scores[j] + base) of the columns that were not
/// passed yet, with `from` as the row before. passed[j] and taken[j] are 0, or infinity for a column that a path passed or that has a row.
/// Returns the column of the least distance among those not passed, of equals one that is not taken.
HCSMOE_FOR_EACH_VECTOR_WIDTH
int64_t relax(const float* __restrict scores, const double* __restrict price, const double* __restrict passed,
              const double* __restrict taken, double base, int64_t from, int64_t n, double* __restrict distance,
              int64_t* __restrict before) {
  Least least, least_free;
  const auto step = [&](int64_t j, int64_t l) __attribute__((always_inline)) {
    const double candidate = price[j] - static_cast<double>(scores[j]) + base + passed[j];
    const bool nearer = candidate < distance[j];
    const double now = nearer ? candidate : distance[j];
    distance[j] = now;
    before[j] = nearer ? from : before[j];
    least.add(l, now + passed[j], j);
    least_free.add(l, now + taken[j], j);
  };
  const int64_t whole = n / lanes * lanes;
  for (int64_t j = 0; j < whole; j += lanes) {
    for (int64_t l = 0; l < lanes; ++l) step(j + l, l);
  }
  least.fold();
  least_free.fold();
  for (int64_t j = whole; j < n; ++j) step(j, 0);
  return least_free.value[0] <= least.value[0] ? least_free.column[0] : least.column[0];
}

class Assignment {
 public:
  Assignment(const float* scores, int64_t n)
      : scores_(scores),
        n_(n),
        price_(static_cast<size_t>(n)),
        row_of_(static_cast<size_t>(n), -1),
        column_of_(static_cast<size_t>(n), -1) {}

  std::vector<int32_t> solve() {
    std::vector<int64_t> free = reduce_columns();
    for (int pass = 0; pass < 2 && !free.empty(); ++pass) free = reduce_rows(free);
    passed_.resize(static_cast<size_t>(n_));
    taken_.resize(static_cast<size_t>(n_));
    for (int64_t j = 0; j < n_; ++j) taken_[static_cast<size_t>(j)] = row_of(j) < 0 ? 0 : infinity;
    distance_.resize(static_cast<size_t>(n_));
    before_.resize(static_cast<size_t>(n_));
    for (const int64_t row : free) augment(row);
    return {column_of_.begin(), column_of_.end()};
  }

 private:
  const float* row(int64_t i) const { return scores_ + i * n_; }
  int64_t& row_of(int64_t j) { return row_of_[static_cast<size_t>(j)]; }
  int64_t& column_of(int64_t i) { return column_of_[static_cast<size_t>(i)]; }
  double& price(int64_t j) { return price_[static_cast<size_t>(j)]; }

  /// A column costs its largest score, and the row that has it gets it, unless it got one before. A row that got one of one offer raises
  /// that column's price to where the row's second choice is as good. Returns the rows without a column.
  std::vector<int64_t> reduce_columns() {
    std::vector<int64_t> best(static_cast<size_t>(n_), 0), offers(static_cast<size_t>(n_), 0), free;
    for (int64_t j = 0; j < n_; ++j) price(j) = static_cast<double>(scores_[j]);
    for (int64_t i = 1; i < n_; ++i) {
      for (int64_t j = 0; j < n_; ++j) {
        const auto score = static_cast<double>(row(i)[j]);
        const bool larger = score > price(j);
        price(j) = larger ? score : price(j);
        best[static_cast<size_t>(j)] = larger ? i : best[static_cast<size_t>(j)];
      }
    }
    for (int64_t j = 0; j < n_; ++j) {
      const int64_t i = best[static_cast<size_t>(j)];
      if (offers[static_cast<size_t>(i)]++ > 0) continue;
      row_of(j) = i;
      column_of(i) = j;
    }
    for (int64_t i = 0; i < n_; ++i) {
      if (column_of(i) < 0) {
        free.push_back(i);
      } else if (offers[static_cast<size_t>(i)] == 1 && n_ > 1) {
        const TwoBest two = two_best(row(i), price_.data(), n_);
        price(column_of(i)) -= two.column == column_of(i) ? two.second_value : two.value;  // its own is worth 0
      }
    }
    return free;
  }

  /// Each free row takes the column that it wants most and raises its price to where its second choice is as good; the row that had it goes
  /// on at once if the price rose, else in the next pass. Prices may rise by less and less in a contest of a few rows, so that the number
  /// of such steps is limited; augment() then settles it.
  std::vector<int64_t> reduce_rows(const std::vector<int64_t>& free) {
    std::vector<int64_t> next;
    if (n_ == 1) return free;
    int64_t steps = 4 * n_;
    for (int64_t i : free) {
      while (i >= 0) {
        const TwoBest two = two_best(row(i), price_.data(), n_);
        int64_t j = two.column;
        const double raised = price(j) + (two.value - two.second_value);
        const bool rises = raised > price(j);
        if (rises) {
          price(j) = raised;
        } else if (row_of(j) >= 0) {
          j = two.second_column;
        }
        const int64_t loser = row_of(j);
        row_of(j) = i;
        column_of(i) = j;
        if (loser >= 0) column_of(loser) = -1;
        if (loser >= 0 && (!rises || --steps < 0)) {
          next.push_back(loser);
          break;
        }
        i = loser;
      }
    }
    return next;
  }

  /// The shortest path from a free row to a column without a row, over columns and the rows that have them; then the rows along it move on
  /// by one column.
  void augment(int64_t start) {
    std::fill(passed_.begin(), passed_.end(), 0.0);
    std::fill(distance_.begin(), distance_.end(), infinity);
    path_.clear();
    int64_t i = start, j = -1;
    double base = 0, length = 0;
    for (;;) {
      j = relax(row(i), price_.data(), passed_.data(), taken_.data(), base, i, n_, distance_.data(), before_.data());
      length = distance_[static_cast<size_t>(j)];
      if (row_of(j) < 0) break;
      path_.push_back(j);
      passed_[static_cast<size_t>(j)] = infinity;
      i = row_of(j);
      base = length - (price(j) - static_cast<double>(row(i)[j]));
    }
    for (const int64_t passed : path_) price(passed) += length - distance_[static_cast<size_t>(passed)];
    taken_[static_cast<size_t>(j)] = infinity;
    for (;;) {
      i = before_[static_cast<size_t>(j)];
      row_of(j) = i;
      std::swap(column_of(i), j);
      if (i == start) break;
    }
  }

  const float* scores_;
  const int64_t n_;
  std::vector<double> price_;
  std::vector<int64_t> row_of_, column_of_;  // -1: none
  std::vector<double> passed_, taken_, distance_;
  std::vector<int64_t> before_;
  std::vector<int64_t> path_;  // columns, in the order in which they were passed
};

}  // namespace

std::vector<int32_t> best_assignment(std::span<const float> scores, int64_t n) {
  if (n < 0 || n > std::numeric_limits<int32_t>::max() || static_cast<int64_t>(scores.size()) != n * n) {
    throw Error("best_assignment: the scores are no square matrix");
  }
  if (n == 0) return {};
  for (const float score : scores) {
    if (!std::isfinite(score)) throw Error("best_assignment: a score is not finite");
  }
  return Assignment(scores.data(), n).solve();
}

}  // namespace hcsmoe
