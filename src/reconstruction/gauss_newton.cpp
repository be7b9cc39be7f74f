#include "reconstruction/gauss_newton.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/cholesky_solve.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "reconstruction/normal_equations.h"
#include "reconstruction/panels.h"
#include "statistics/fixed_point.h"

namespace hcsmoe {
namespace {

constexpr double damping = 0.1;       // share of the mean diagonal
constexpr int64_t most_units = 2048;  // of which S is kept whole; more are cut into blocks, and S is block-diagonal

/// Cholesky factor in float32 of a damped float64 matrix; undefined where it is not positive definite.
at::Tensor factor_of(at::Tensor matrix) {
  add_ridge(matrix, damping);
  const auto [factor, info] = on_one_thread([&] { return at::linalg_cholesky_ex(matrix); });
  return *info.const_data_ptr<int>() == 0 ? factor.to(at::kFloat) : at::Tensor();
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
      each_row([&](int64_t row) {
        for (int64_t c = row * F_; c < (row + 1) * F_; ++c)
          data<float>(weighted)[c] = const_data<float>(back)[c] * const_data<float>(slope)[c];
      });
      halves.push_back(cross_product(weighted, task_.input, task_.units.group_end, ranks_));
    }
    return at::cat(halves);
  }

  /// J V: float32 [rows, D]. V float32 [2F, D]
  at::Tensor forward(const at::Tensor& v) {
    const at::Tensor input = task_.input.narrow(0, 0, rows_);
    const at::Tensor by_gate = row_product(input, v.narrow(0, 0, F_), back_), by_up = row_product(input, v.narrow(0, F_, F_), weighted_);
    each_row([&](int64_t row) {
      for (int64_t c = row * F_; c < (row + 1) * F_; ++c) {
        data<float>(by_gate)[c] = const_data<float>(task_.units.gate_slope)[c] * const_data<float>(by_gate)[c] +
                                  const_data<float>(task_.units.up_slope)[c] * const_data<float>(by_up)[c];
      }
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
      for (int64_t i = 0; i < 2 * n; ++i) {
        for (int64_t j = 0; j < 2 * n; ++j)
          data<double>(matrix)[i * 2 * n + j] *= static_cast<double>(const_data<float>(of_down)[i % n * n + j % n]);
      }
      result.units.push_back(factor_of(matrix));
    }
    // C: the inputs' second moment, weighted by the squared gates; their sum of squares divides it.
    at::Tensor inputs = weighted_.get(rows_, D_, at::kFloat);
    std::vector<int64_t> buffer(FixedPointSums::buffer_size(1));
    FixedPointSums squares(buffer);
    each_row([&](int64_t row) {
      const float gate = row < training_ ? task_.units.gates[static_cast<size_t>(row)] : 0;
      for (int64_t c = row * D_; c < (row + 1) * D_; ++c) data<float>(inputs)[c] = gate * const_data<float>(task_.input)[c];
    });
    for (int64_t row = 0; row < training_; ++row) {
      const auto gate = static_cast<double>(task_.units.gates[static_cast<size_t>(row)]);
      squares.add(0, gate * gate);
    }
    ranks_.all_reduce_sum(buffer);
    if (!(squares.value(0) > 0)) return result;
    result.input = factor_of(gram(inputs, task_.units.group_end, ranks_).div(squares.value(0)));
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
    std::vector<int64_t> buffer(FixedPointSums::buffer_size(1));
    FixedPointSums sum(buffer);
    for (int64_t row = 0; row < training_; ++row) {
      double square = 0;
      for (int64_t c = row * D_; c < (row + 1) * D_; ++c)
        square += static_cast<double>(const_data<float>(x)[c]) * static_cast<double>(const_data<float>(x)[c]);
      sum.add(0, square / task_.unit);
    }
    ranks_.all_reduce_sum(buffer);
    return sum.value(0);
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

/// <a, b> on one thread, in one order.
double inner(const at::Tensor& a, const at::Tensor& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.numel(); ++i) sum += const_data<double>(a)[i] * static_cast<double>(const_data<float>(b)[i]);
  return sum;
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
