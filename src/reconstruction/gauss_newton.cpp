#include "reconstruction/gauss_newton.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm_ops.h>

#include <algorithm>

#include "forward/row_kernels.h"
#include "reconstruction/normal_equations.h"
#include "reconstruction/panels.h"
#include "reconstruction/row_sums.h"

namespace hcsmoe {
namespace {

constexpr double damping = 0.03;  // share of the mean diagonal

template <class Work>
void each_row(int64_t rows, const Work& work) {
  for_each_task(blocks_of(rows, routed_row_block), [&](int64_t b, int) {
    for (int64_t row = b * routed_row_block; row < std::min(rows, (b + 1) * routed_row_block); ++row) work(row);
  });
}

/// J^T r: float32 [2F, D].
at::Tensor gradient_of(const GaussNewtonTask& task, const at::Tensor& down_transposed, const Ranks& ranks) {
  const int64_t F = task.down.size(1), rows = padded(task.units.training, routed_row_block);
  Buffer rest_buffer, back_buffer, weighted_buffer, typed_buffer;
  const at::ScalarType type = task.units.values.scalar_type();
  const at::Tensor back = row_product(in_type(task.rest.narrow(0, 0, rows), type, rest_buffer), down_transposed, back_buffer);  // [rows, F]
  at::Tensor weighted = weighted_buffer.get(rows, F, at::kFloat);
  std::vector<at::Tensor> halves;
  for (const at::Tensor& slope : {task.units.gate_slope, task.units.up_slope}) {
    const auto *const by = const_data<float>(slope), *const of = const_data<float>(back);
    auto* const to = data<float>(weighted);
    each_row(rows, [&](int64_t row) { multiply(of + row * F, by + row * F, F, to + row * F); });
    halves.push_back(cross_product(in_type(weighted, type, typed_buffer), task.input, task.units.group_end, ranks).to(at::kFloat));
  }
  return at::cat(halves);
}

/// The inverses of the blocks of S, and of C last; empty where one is not positive definite.
std::vector<at::Tensor> preconditioner(const GaussNewtonTask& task, const at::Tensor& gate_slope, const at::Tensor& up_slope,
                                       const at::Tensor& input, const at::Tensor& down_transposed, const Ranks& ranks) {
  const int64_t F = task.down.size(1), D = task.down.size(0), n = static_cast<int64_t>(task.sample.size());
  const at::ScalarType type = task.units.values.scalar_type();
  Buffer buffer;
  std::vector<Damped> matrices;
  for (int64_t first = 0; first < F; first += most_units) {
    const int64_t width = std::min(most_units, F - first);
    const at::Tensor slopes = at::cat({gate_slope.narrow(1, first, width), up_slope.narrow(1, first, width)}, 1);  // [rows, 2 width]
    at::Tensor matrix = gram(in_type(slopes, type, buffer), task.sample_end, ranks);
    const at::Tensor some_down = down_transposed.narrow(0, first, width);
    const at::Tensor of_down = in_panels(width, width, at::kFloat, ranks, [&](int64_t row, int64_t rows) {
      at::Tensor part = at::empty({rows, width}, at::kFloat);
      block_product(some_down.narrow(0, row, rows), some_down, part);
      return part;
    });
    auto* const values = data<double>(matrix);
    const auto* const factors = const_data<float>(of_down);
    for_each_task(2 * width, [&](int64_t i, int) {
      for (int64_t j = 0; j < 2 * width; ++j) values[i * 2 * width + j] *= static_cast<double>(factors[i % width * width + j % width]);
    });
    matrices.push_back({matrix, damping});
  }
  Buffer weighted_buffer, typed_buffer;
  at::Tensor weighted = weighted_buffer.get(input.size(0), D, at::kFloat);
  weighted.copy_(input);
  const auto gate = [&](int64_t row) { return task.units.gates[static_cast<size_t>(task.sample[static_cast<size_t>(row)])]; };
  each_row(n, [&](int64_t row) {
    for (int64_t c = row * D; c < (row + 1) * D; ++c) data<float>(weighted)[c] *= gate(row);
  });
  const double squares =
      sum_over_rows(n, ranks, [&](int64_t row) { return static_cast<double>(gate(row)) * static_cast<double>(gate(row)); });
  if (!(squares > 0)) return {};
  matrices.push_back({gram(in_type(weighted, type, typed_buffer), task.sample_end, ranks).div(squares), damping});
  std::vector<at::Tensor> result = inverses(matrices, ranks);
  if (std::any_of(result.begin(), result.end(), [](const at::Tensor& inverse) { return !inverse.defined(); })) result.clear();
  return result;
}

/// S^-1 B C^-1: float32 [2F, D]
at::Tensor precondition(const std::vector<at::Tensor>& by, const at::Tensor& b, const Ranks& ranks) {
  const int64_t F = b.size(0) / 2, D = b.size(1);
  const at::Tensor half = in_panels(D, 2 * F, at::kFloat, ranks, [&](int64_t column, int64_t width) {  // (S^-1 B)^T
    at::Tensor part = at::empty({width, 2 * F}, at::kFloat);
    for (size_t block = 0; block + 1 < by.size(); ++block) {
      const int64_t first = static_cast<int64_t>(block) * most_units, n = by[block].size(0) / 2;
      const at::Tensor both = at::cat({b.narrow(0, first, n).narrow(1, column, width), b.narrow(0, F + first, n).narrow(1, column, width)});
      at::Tensor found = at::empty({width, 2 * n}, at::kFloat);
      at::_ops::mm_out::call(both.t(), by[block], found);
      part.narrow(1, first, n).copy_(found.narrow(1, 0, n));
      part.narrow(1, F + first, n).copy_(found.narrow(1, n, n));
    }
    return part;
  });
  return in_panels(2 * F, D, at::kFloat, ranks, [&](int64_t row, int64_t width) {
    at::Tensor part = at::empty({width, D}, at::kFloat);
    at::_ops::mm_out::call(half.narrow(1, row, width).t(), by.back(), part);
    return part;
  });
}

}  // namespace

at::Tensor gauss_newton_step(const GaussNewtonTask& task, const Ranks& ranks) {
  const int64_t F = task.down.size(1), D = task.down.size(0), n = static_cast<int64_t>(task.sample.size());
  const at::Tensor down_transposed = task.down.t().contiguous();  // [F, D]
  Buffer gate_buffer, up_buffer, rest_buffer, input_buffer, typed_buffer, by_gate_buffer, by_up_buffer, change_buffer;
  const at::Tensor gate_slope = gathered(task.units.gate_slope, task.sample, gate_buffer);
  const at::Tensor up_slope = gathered(task.units.up_slope, task.sample, up_buffer);
  const at::Tensor input = gathered(task.input, task.sample, input_buffer);
  const std::vector<at::Tensor> by = preconditioner(task, gate_slope, up_slope, input, down_transposed, ranks);
  if (by.empty()) return {};
  const at::Tensor direction = precondition(by, gradient_of(task, down_transposed, ranks), ranks);  // [2F, D]

  // J V on the sample, and the length that leaves least of the rest there.
  const at::ScalarType type = task.units.values.scalar_type();
  const at::Tensor by_gate = row_product(input, direction.narrow(0, 0, F), by_gate_buffer);  // [n padded, F]
  const at::Tensor by_up = row_product(input, direction.narrow(0, F, F), by_up_buffer);
  auto* const both = data<float>(by_gate);
  each_row(by_gate.size(0), [&](int64_t row) {
    const int64_t at = row * F;
    multiply_and_add(const_data<float>(gate_slope) + at, const_data<float>(up_slope) + at, const_data<float>(by_up) + at, F, both + at);
  });
  const at::Tensor change = row_product(in_type(by_gate, type, typed_buffer), task.down, change_buffer);  // [n padded, D]
  const at::Tensor rest = gathered(task.rest, task.sample, rest_buffer);
  const double square = sum_over_rows(n, ranks, [&](int64_t r) { return squared(const_data<float>(change) + r * D, D) / task.unit; });
  const double along = sum_over_rows(
      n, ranks, [&](int64_t r) { return dot(const_data<float>(change) + r * D, const_data<float>(rest) + r * D, D) / task.unit; });
  if (!(square > 0) || !(along > 0) || !std::isfinite(square)) return {};
  return direction.mul(along / square);
}

}  // namespace hcsmoe
