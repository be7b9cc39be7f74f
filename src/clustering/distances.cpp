#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>

#include "hcsmoe/clustering.h"
#include "hcsmoe/error.h"
#include "support/vector_width.h"

namespace hcsmoe {
namespace {

constexpr int64_t lanes = 8;    // partial sums of a pair, whatever the processor's vectors
constexpr int64_t tile = 4;     // rows x rows that share their loads
constexpr int64_t panel = 256;  // columns that are worked on at a time: a panel of 256 rows stays in the second-level cache
using Lanes = double __attribute__((vector_size(lanes * sizeof(double)), may_alias));

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

struct FreeAligned {
  void operator()(double* p) const { std::free(p); }
};
using Panel = std::unique_ptr<double[], FreeAligned>;
Panel make_panel(int64_t rows) {
  void* memory = std::aligned_alloc(64, static_cast<size_t>(rows * panel) * sizeof(double));
  if (!memory) throw std::bad_alloc();
  return Panel(static_cast<double*>(memory));
}

/// Adds the squared distances over one panel: sums[i * rows + j] += sum over columns of (panel[i] - panel[j])^2, for all i < j (and a few
/// others near the diagonal). values: [rows, panel], 64-byte aligned; rows is a multiple of `tile`, width of `lanes`.
HCSMOE_FOR_EACH_VECTOR_WIDTH
void add_squared_distances(const double* values, int64_t rows, int64_t width, double* sums) {
  for (int64_t i = 0; i < rows; i += tile) {
    for (int64_t j = i; j < rows; j += tile) {
      const auto* x = reinterpret_cast<const Lanes*>(values + i * panel);
      const auto* y = reinterpret_cast<const Lanes*>(values + j * panel);
      constexpr int64_t pitch = panel / lanes;
      Lanes s00{}, s01{}, s02{}, s03{}, s10{}, s11{}, s12{}, s13{}, s20{}, s21{}, s22{}, s23{}, s30{}, s31{}, s32{}, s33{};
      for (int64_t c = 0; c < width / lanes; c++) {
        const Lanes y0 = y[c], y1 = y[c + pitch], y2 = y[c + 2 * pitch], y3 = y[c + 3 * pitch];
        const auto add_row = [&](const Lanes& row, Lanes& s0, Lanes& s1, Lanes& s2, Lanes& s3) __attribute__((always_inline)) {
          const Lanes d0 = row - y0, d1 = row - y1, d2 = row - y2, d3 = row - y3;
          s0 += d0 * d0, s1 += d1 * d1, s2 += d2 * d2, s3 += d3 * d3;
        };
        add_row(x[c], s00, s01, s02, s03);
        add_row(x[c + pitch], s10, s11, s12, s13);
        add_row(x[c + 2 * pitch], s20, s21, s22, s23);
        add_row(x[c + 3 * pitch], s30, s31, s32, s33);
      }
      const Lanes partial[tile][tile] = {{s00, s01, s02, s03}, {s10, s11, s12, s13}, {s20, s21, s22, s23}, {s30, s31, s32, s33}};
      for (int64_t a = 0; a < tile; a++) {
        for (int64_t b = 0; b < tile; b++) {
          const Lanes& s = partial[a][b];
          sums[(i + a) * rows + j + b] += ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
        }
      }
    }
  }
}

/// Squared Euclidean distances of all pairs, condensed; row r is divided by divisor[r] first, unless there are none.
std::vector<double> squared_distances(std::span<const double> features, int64_t rows, int64_t columns, const std::vector<double>& divisor) {
  const int64_t padded = round_up(rows, tile);
  const Panel values = make_panel(padded);
  std::fill_n(values.get(), padded * panel, 0.0);
  std::vector<double> sums(static_cast<size_t>(padded * padded), 0.0);
  for (int64_t begin = 0; begin < columns; begin += panel) {
    const int64_t count = std::min(panel, columns - begin);
    const int64_t width = round_up(count, lanes);
    for (int64_t r = 0; r < rows; r++) {
      const double* from = features.data() + r * columns + begin;
      double* to = values.get() + r * panel;
      if (divisor.empty()) {
        std::copy_n(from, count, to);
      } else {
        for (int64_t c = 0; c < count; c++) to[c] = from[c] / divisor[r];
      }
      std::fill(to + count, to + width, 0.0);
    }
    add_squared_distances(values.get(), padded, width, sums.data());
  }
  std::vector<double> condensed;
  condensed.reserve(static_cast<size_t>(rows * (rows - 1) / 2));
  for (int64_t i = 0; i < rows; i++) condensed.insert(condensed.end(), sums.begin() + i * padded + i + 1, sums.begin() + i * padded + rows);
  return condensed;
}

/// Euclidean norm without overflow or underflow on the way.
double norm(std::span<const double> row) {
  double largest = 0, sum = 0;
  for (const double x : row) largest = std::max(largest, std::abs(x));
  if (largest == 0) return 0;
  for (const double x : row) sum += (x / largest) * (x / largest);
  return largest * std::sqrt(sum);
}

/// 1 - cos(x, y) as half the squared distance of the normalised rows: the same number, without the cancellation of nearly parallel rows.
std::vector<double> cosine_distances(std::span<const double> features, int64_t rows, int64_t columns) {
  std::vector<double> norms;
  for (int64_t r = 0; r < rows; r++) norms.push_back(norm(features.subspan(r * columns, columns)));
  std::vector<double> divisor = norms;
  std::replace(divisor.begin(), divisor.end(), 0.0, 1.0);
  std::vector<double> condensed = squared_distances(features, rows, columns, divisor);
  auto distance = condensed.begin();
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = i + 1; j < rows; j++, distance++) {
      if (norms[i] == 0 || norms[j] == 0) {
        *distance = norms[i] == norms[j] ? 0 : 1;
      } else {
        *distance = std::min(0.5 * *distance, 2.0);
      }
    }
  }
  return condensed;
}

}  // namespace

std::vector<double> pairwise_distances(std::span<const double> features, int64_t rows, int64_t columns, Metric metric) {
  if (rows < 1 || columns < 1 || features.size() != static_cast<size_t>(rows) * static_cast<size_t>(columns)) {
    throw Error("pairwise_distances: " + std::to_string(features.size()) + " values are not [" + std::to_string(rows) + ", " +
                std::to_string(columns) + "]");
  }
  const auto bad = std::find_if_not(features.begin(), features.end(), [](double x) { return std::isfinite(x); });
  if (bad != features.end()) {
    const int64_t at = bad - features.begin();
    throw Error("feature " + std::to_string(at % columns) + " of expert " + std::to_string(at / columns) + " is not finite");
  }
  if (metric == Metric::cosine) return cosine_distances(features, rows, columns);
  std::vector<double> condensed = squared_distances(features, rows, columns, {});
  for (double& distance : condensed) distance = std::sqrt(distance);
  return condensed;
}

}  // namespace hcsmoe
