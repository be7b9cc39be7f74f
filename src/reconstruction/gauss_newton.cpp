#include "reconstruction/gauss_newton.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm_ops.h>

#include <algorithm>

#include "forward/row_kernels.h"
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
at::Tensor gradient_of(const GaussNewtonTask& task, const at::Tensor& down_transposed, StepBuffers& buffers, const Ranks& ranks) {
  const int64_t F = task.down.size(1), rows = padded(task.units.training, routed_row_block);
  const at::ScalarType type = task.units.values.scalar_type();
  const at::Tensor rest = in_type(task.rest.narrow(0, 0, rows), type, buffers.rest);
  const at::Tensor back = row_product(rest, down_transposed, buffers.back);  // [rows, F]
  at::Tensor weighted = buffers.weighted.get(rows, F, at::kFloat);
  std::vector<at::Tensor> halves;
  for (const at::Tensor& slope : {task.units.gate_slope, task.units.up_slope}) {
    const auto *const by = const_data<float>(slope), *const of = const_data<float>(back);
    auto* const to = data<float>(weighted);
    each_row(rows, [&](int64_t row) { multiply(of + row * F, by + row * F, F, to + row * F); });
    halves.push_back(cross_product(in_type(weighted, type, buffers.typed), task.input, task.units.group_end, buffers.groups, ranks));
  }
  return at::cat(halves);
}

/// The inverses of the blocks of S, and of C last; empty where one is not positive definite.
std::vector<at::Tensor> preconditioner(const GaussNewtonTask& task, const at::Tensor& down_transposed, StepBuffers& buffers,
                                       const Ranks& ranks) {
  const int64_t F = task.down.size(1), D = task.down.size(0);
  const auto n = static_cast<int64_t>(task.sample.rows.size());
  const at::ScalarType type = task.units.values.scalar_type();
  std::vector<Damped> matrices;
  for (int64_t first = 0; first < F; first += most_units) {
    const int64_t width = std::min(most_units, F - first);
    at::Tensor slopes = buffers.slopes.get(padded(n, routed_row_block), 2 * width, at::kFloat);  // side by side
    each_row(n, [&](int64_t row) {
      const int64_t from = task.sample.rows[static_cast<size_t>(row)] * F + first;
      float* const to = data<float>(slopes) + row * 2 * width;
      std::copy_n(const_data<float>(task.units.gate_slope) + from, width, to);
      std::copy_n(const_data<float>(task.units.up_slope) + from, width, to + width);
    });
    at::Tensor matrix = gram(in_type(slopes, type, buffers.typed), task.sample.group_end, buffers.groups, ranks);
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
  at::Tensor weighted = buffers.weighted.get(padded(n, routed_row_block), D, at::kFloat);
  weighted.copy_(gathered(task.input, task.sample.rows, buffers.input));
  const auto gate = [&](int64_t row) { return task.units.gates[static_cast<size_t>(task.sample.rows[static_cast<size_t>(row)])]; };
  each_row(n, [&](int64_t row) {
    for (int64_t c = row * D; c < (row + 1) * D; ++c) data<float>(weighted)[c] *= gate(row);
  });
  const double squares =
      sum_over_rows(n, ranks, [&](int64_t row) { return static_cast<double>(gate(row)) * static_cast<double>(gate(row)); });
  if (!(squares > 0)) return {};
  matrices.push_back({gram(in_type(weighted, type, buffers.typed), task.sample.group_end, buffers.groups, ranks).div_(squares), damping});
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

at::Tensor gauss_newton_step(const GaussNewtonTask& task, StepBuffers& buffers, const Ranks& ranks) {
  const Span span(ranks.trace(), Activity::reconstructing, "Gauss-Newton step");
  const int64_t F = task.down.size(1), D = task.down.size(0);
  const at::Tensor down_transposed = task.down.t().contiguous();  // [F, D]
  const std::vector<at::Tensor> by = preconditioner(task, down_transposed, buffers, ranks);
  if (by.empty()) return {};
  const at::Tensor gradient = gradient_of(task, down_transposed, buffers, ranks);
  const at::Tensor direction = precondition(by, gradient, ranks);  // [2F, D]

  // J V on the sample, and the length that leaves least of the rest there.
  const std::vector<int32_t>& sample = task.sample.rows;
  const auto n = static_cast<int64_t>(sample.size());
  const at::ScalarType type = task.units.values.scalar_type();
  const at::Tensor input = gathered(task.input, sample, buffers.input);
  const at::Tensor by_gate = row_product(input, direction.narrow(0, 0, F), buffers.by_gate);  // [n padded, F]
  const at::Tensor by_up = row_product(input, direction.narrow(0, F, F), buffers.by_up);
  auto* const both = data<float>(by_gate);
  each_row(n, [&](int64_t row) {
    const int64_t at = row * F, of = sample[static_cast<size_t>(row)] * F;
    multiply_and_add(const_data<float>(task.units.gate_slope) + of, const_data<float>(task.units.up_slope) + of,
                     const_data<float>(by_up) + at, F, both + at);
  });
  const at::Tensor change = row_product(in_type(by_gate, type, buffers.typed), task.down, buffers.change);  // [n padded, D]
  const auto rest = [&](int64_t row) { return const_data<float>(task.rest) + sample[static_cast<size_t>(row)] * D; };
  const double square = sum_over_rows(n, ranks, [&](int64_t r) { return squared(const_data<float>(change) + r * D, D) / task.unit; });
  const double along = sum_over_rows(n, ranks, [&](int64_t r) { return dot(const_data<float>(change) + r * D, rest(r), D) / task.unit; });
  if (!(square > 0) || !(along > 0) || !std::isfinite(square)) return {};
  return direction.mul(along / square);
}

}  // namespace hcsmoe
