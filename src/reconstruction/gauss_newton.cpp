#include "reconstruction/gauss_newton.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/cholesky_solve.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>

#include "forward/row_kernels.h"
#include "reconstruction/normal_equations.h"
#include "reconstruction/panels.h"
#include "reconstruction/row_sums.h"

namespace hcsmoe {
namespace {

constexpr double damping = 0.1;  // share of the mean diagonal

/// Cholesky factor in float32 of a damped float64 matrix; undefined where it is not positive definite.
at::Tensor factor_of(at::Tensor matrix) {
  add_ridge(matrix, damping);
  const at::Tensor factor = cholesky_factor(matrix);
  return factor.defined() ? factor.to(at::kFloat) : factor;
}

struct Preconditioner {
  std::vector<at::Tensor> units;  // of each block of units [2 u, 2 u]
  at::Tensor input;               // [D, D]
  bool defined = false;
};

class Problem {
 public:
  Problem(const GaussNewtonTask& task, const Ranks& ranks)
      : task_(task),
        ranks_(ranks),
        F_(task.down.size(1)),
        D_(task.down.size(0)),
        training_(task.units.training),
        rows_(padded(task.units.training, routed_row_block)),
        down_transposed_(task.down.t().contiguous()) {}  // [F, D]

  /// [2F, D] float64: J^T r. r float32 [rows, D]
  at::Tensor transposed(const at::Tensor& r) {
    const at::Tensor back = row_product(r, down_transposed_, back_);  // [rows, F]
    at::Tensor weighted = weighted_.get(rows_, F_, at::kFloat);
    std::vector<at::Tensor> halves;
    for (const at::Tensor& slope : {task_.units.gate_slope, task_.units.up_slope}) {
      const auto *const by = const_data<float>(slope), *const of = const_data<float>(back);
      auto* const to = data<float>(weighted);
      each_row([&](int64_t row) { multiply(of + row * F_, by + row * F_, F_, to + row * F_); });
      halves.push_back(cross_product(weighted, task_.input, task_.units.group_end, ranks_));
    }
    return at::cat(halves);
  }

  /// J V: float32 [rows, D]. V float32 [2F, D]
  at::Tensor forward(const at::Tensor& v) {
    const at::Tensor input = task_.input.narrow(0, 0, rows_);
    const at::Tensor by_gate = row_product(input, v.narrow(0, 0, F_), back_), by_up = row_product(input, v.narrow(0, F_, F_), weighted_);
    const auto *const gate_slope = const_data<float>(task_.units.gate_slope), *const up_slope = const_data<float>(task_.units.up_slope),
                      *const up = const_data<float>(by_up);
    auto* const both = data<float>(by_gate);
    each_row([&](int64_t row) {
      const int64_t at = row * F_;
      multiply_and_add(gate_slope + at, up_slope + at, up + at, F_, both + at);
    });
    return row_product(by_gate, task_.down, outputs_);
  }

  Preconditioner preconditioner() {
    Preconditioner result;
    for (int64_t first = 0; first < F_; first += most_units) {
      const int64_t n = std::min(most_units, F_ - first);
      const at::Tensor slopes = at::cat(
          {task_.units.gate_slope.narrow(0, 0, rows_).narrow(1, first, n), task_.units.up_slope.narrow(0, 0, rows_).narrow(1, first, n)},
          1);  // [rows, 2n]
      at::Tensor matrix = gram(slopes, task_.units.group_end, ranks_);
      const at::Tensor some_down = down_transposed_.narrow(0, first, n);
      const at::Tensor of_down = in_panels(n, n, at::kFloat, ranks_, [&](int64_t row, int64_t width) {
        at::Tensor part = at::empty({width, n}, at::kFloat);
        block_product(some_down.narrow(0, row, width), some_down, part);
        return part;
      });
      auto* const values = data<double>(matrix);
      const auto* const factors = const_data<float>(of_down);
      for_each_task(2 * n, [&](int64_t i, int) {
        for (int64_t j = 0; j < 2 * n; ++j) values[i * 2 * n + j] *= static_cast<double>(factors[i % n * n + j % n]);
      });
      result.units.push_back(factor_of(matrix));
    }
    // C: the inputs' second moment, weighted by the squared gates; their sum of squares divides it.
    at::Tensor inputs = weighted_.get(rows_, D_, at::kFloat);
    const auto* const from = const_data<float>(task_.input);
    auto* const to = data<float>(inputs);
    each_row([&](int64_t row) {
      const float gate = row < training_ ? task_.units.gates[static_cast<size_t>(row)] : 0;
      for (int64_t c = row * D_; c < (row + 1) * D_; ++c) to[c] = gate * from[c];
    });
    const double squares = sum_over_rows(training_, ranks_, [&](int64_t row) {
      const auto gate = static_cast<double>(task_.units.gates[static_cast<size_t>(row)]);
      return gate * gate;
    });
    if (!(squares > 0)) return result;
    result.input = factor_of(gram(inputs, task_.units.group_end, ranks_).div(squares));
    result.defined = result.input.defined() &&
                     std::all_of(result.units.begin(), result.units.end(), [](const at::Tensor& factor) { return factor.defined(); });
    return result;
  }

  /// S^-1 B C^-1: float32 [2F, D]
  at::Tensor precondition(const Preconditioner& by, const at::Tensor& b) const {
    const at::Tensor right = b.to(at::kFloat);
    const at::Tensor half = in_panels(D_, 2 * F_, at::kFloat, ranks_, [&](int64_t column, int64_t width) {  // (S^-1 B)^T
      at::Tensor part = at::empty({width, 2 * F_}, at::kFloat);
      for (size_t block = 0; block < by.units.size(); ++block) {
        const int64_t first = static_cast<int64_t>(block) * most_units, n = by.units[block].size(0) / 2;
        const at::Tensor both =
            at::cat({right.narrow(0, first, n).narrow(1, column, width), right.narrow(0, F_ + first, n).narrow(1, column, width)});
        const at::Tensor solved = at::cholesky_solve(both, by.units[block]).t();  // [width, 2n]
        part.narrow(1, first, n).copy_(solved.narrow(1, 0, n));
        part.narrow(1, F_ + first, n).copy_(solved.narrow(1, n, n));
      }
      return part;
    });
    return in_panels(2 * F_, D_, at::kFloat, ranks_, [&](int64_t row, int64_t width) {
      return at::cholesky_solve(half.narrow(1, row, width).contiguous(), by.input).t().contiguous();
    });
  }

  /// Sum over the training rows of |x|^2 / unit.
  double squared(const at::Tensor& x) const {
    const auto* const values = const_data<float>(x);
    return sum_over_rows(training_, ranks_, [&](int64_t row) { return hcsmoe::squared(values + row * D_, D_) / task_.unit; });
  }

  template <class Work>
  void each_row(const Work& work) const {
    for_each_task(blocks_of(rows_, routed_row_block), [&](int64_t b, int) {
      for (int64_t row = b * routed_row_block; row < (b + 1) * routed_row_block; ++row) work(row);
    });
  }

  int64_t F() const { return F_; }
  int64_t D() const { return D_; }
  int64_t rows() const { return rows_; }

 private:
  const GaussNewtonTask& task_;
  const Ranks& ranks_;
  const int64_t F_, D_, training_, rows_;
  const at::Tensor down_transposed_;
  Buffer back_, weighted_, outputs_;
};

/// <a, b>, row by row and then over the rows in their order. a float64, b float32.
double inner(const at::Tensor& a, const at::Tensor& b) {
  const int64_t C = a.size(1);
  const auto* const left = const_data<double>(a);
  const auto* const right = const_data<float>(b);
  std::vector<double> rows(static_cast<size_t>(a.size(0)));
  for_each_task(a.size(0), [&](int64_t i, int) { rows[static_cast<size_t>(i)] = dot(right + i * C, left + i * C, C); });
  return std::accumulate(rows.begin(), rows.end(), 0.0);
}

}  // namespace

void gauss_newton(const GaussNewtonTask& task, int iterations, const Ranks& ranks, const std::function<bool(const at::Tensor&)>& try_step) {
  Problem problem(task, ranks);
  const Preconditioner by = problem.preconditioner();
  if (!by.defined) return;
  at::Tensor rest = task.rest.narrow(0, 0, problem.rows()).clone();
  at::Tensor gradient = problem.transposed(rest);             // [2F, D]
  at::Tensor direction = problem.precondition(by, gradient);  // [2F, D]
  double strength = inner(gradient, direction);
  at::Tensor step = at::zeros({2 * problem.F(), problem.D()}, at::kFloat);
  for (int i = 0; i < iterations && strength > 0; ++i) {
    const at::Tensor change = problem.forward(direction);  // [rows, D]
    const double size = problem.squared(change) * task.unit;
    if (!(size > 0)) return;
    step.add_(direction, strength / size);
    if (!try_step(step) || i + 1 == iterations) return;
    rest.add_(change, -strength / size);
    gradient = problem.transposed(rest);
    const at::Tensor next = problem.precondition(by, gradient);
    const double next_strength = inner(gradient, next);
    direction = next.add(direction, next_strength / strength);
    strength = next_strength;
  }
}

}  // namespace hcsmoe
