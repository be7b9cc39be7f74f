// The steps of the reconstruction of one block, each kept or undone by the held-out error.

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "forward/row_kernels.h"
#include "hcsmoe/error.h"
#include "hcsmoe/reconstruction.h"
#include "reconstruction/gauss_newton.h"
#include "reconstruction/normal_equations.h"
#include "reconstruction/router_rows.h"
#include "reconstruction/token_outputs.h"
#include "reconstruction/units.h"
#include "statistics/fixed_point.h"

namespace hcsmoe {
namespace {

constexpr double ridges[] = {1e-3, 1e-2, 1e-1};  // shares of the Gram matrix's mean diagonal
constexpr int64_t most_output_tokens = 16384;    // on which every expert runs for the router's output error
constexpr int gauss_newton_iterations = 2;
constexpr int64_t fewest_training = 8, fewest_held_out = 2;  // tokens to fit an expert on

double squared(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t c = 0; c < n; ++c) sum += static_cast<double>(x[c]) * static_cast<double>(x[c]);
  return sum;
}

class Fit {
 public:
  Fit(const BlockTokens& tokens, const RoutingRule& rule, const SparseBlock& block, const Compute& compute, const Ranks& ranks)
      : experts(block.experts),
        tokens_(tokens),
        rule_(rule),
        ranks_(ranks),
        router_type_(block.router.scalar_type()),
        units_of_(tokens.input, tokens.groups, compute),
        trial_units_of_(tokens.input, tokens.groups, compute) {
    for (const ExpertWeights& expert : experts) down.push_back(expert.down.to(at::kFloat).contiguous().clone());
    set_unit();
    set_rows(block.router);
  }

  std::vector<ExpertWeights> experts;
  std::vector<at::Tensor> down;  // float32 [D, F] each
  at::Tensor rows;               // float32 [K, D], of values that the checkpoint's type can hold
  at::Tensor residual;           // float32 [N, D]: target - block
  double error = 0;              // held-out |residual|^2 / |target|^2

  /// Routes all tokens by these rows.
  void set_rows(const at::Tensor& rows_) {
    rows = rows_.to(router_type_).to(at::kFloat).contiguous();
    routing_ = route_rows(tokens_.input, rows, rule_);
    const at::Tensor& target = tokens_.target;
    residual = target.clone();
    Buffer product;
    for (size_t k = 0; k < experts.size(); ++k) {
      const Units& units = units_of_.of(experts[k], routing_.of_expert[k]);
      subtract(units, row_product(units.values, down[k], product));
    }
    error = held_out_error(residual);
  }

  /// Back to what set_rows replaced.
  void restore(const at::Tensor& old_rows, const at::Tensor& old_residual, double old_error) {
    rows = old_rows;
    residual = old_residual;
    error = old_error;
    routing_ = route_rows(tokens_.input, rows, rule_);
  }

  /// One pass over the experts, each on what the others leave: `iterations` of Gauss-Newton for the gate and up projections, then ridge
  /// least squares for the down projection. What does not lower the held-out error is undone.
  void fit_experts(int iterations) {
    for (size_t k = 0; k < experts.size(); ++k) fit_expert(k, iterations);
    error = held_out_error(residual);
  }

  double held_out_error(const at::Tensor& rest) const {
    std::vector<int64_t> buffer(FixedPointSums::buffer_size(1));
    FixedPointSums sum(buffer);
    const int64_t D = rest.size(1);
    for (int64_t r = 0; r < rest.size(0); ++r) {
      if (tokens_.groups.held_out[static_cast<size_t>(r)] != 0) sum.add(0, squared(const_data<float>(rest) + r * D, D) / unit_);
    }
    ranks_.all_reduce_sum(buffer);
    return sum.value(0) / held_out_target_;
  }

 private:
  void set_unit() {
    const int64_t N = tokens_.target.size(0), D = tokens_.target.size(1);
    double most = 0;
    for (int64_t r = 0; r < N; ++r) most = std::max(most, squared(const_data<float>(tokens_.target) + r * D, D));
    if (!std::isfinite(most)) throw Error("a block's output is not finite: the checkpoint's weights overflow, or are damaged");
    int exponent = 0;
    std::frexp(most, &exponent);
    const int64_t largest = ranks_.all_reduce_max(most > 0 ? exponent + 2000 : 0);
    unit_ = largest > 0 ? std::ldexp(1.0, static_cast<int>(largest) - 2000) : 1;
    held_out_target_ = 1;
    if (const double all = held_out_error(tokens_.target); all > 0) held_out_target_ = all;
  }

  void subtract(const Units& units, const at::Tensor& outputs) {
    const int64_t D = residual.size(1);
    for_each_task(blocks_of(units.count(), routed_row_block), [&](int64_t b, int) {
      for (int64_t r = b * routed_row_block; r < std::min(units.count(), (b + 1) * routed_row_block); ++r) {
        float* out = data<float>(residual) + units.rows[static_cast<size_t>(r)] * D;
        add_scaled(const_data<float>(outputs) + r * D, -1.0f, D, out);
      }
    });
  }

  void fit_expert(size_t k, int iterations) {
    const std::vector<Routing::Entry>& entries = routing_.of_expert[k];
    const Units* units = &units_of_.of(experts[k], entries, iterations > 0);
    std::vector<int64_t> counts{units->training, units->count() - units->training};
    ranks_.all_reduce_sum(counts);
    if (counts[0] < fewest_training || counts[1] < fewest_held_out) return;
    at::Tensor rest = gathered(residual, units->rows, rest_buffer_);  // [rows, D]
    if (iterations > 0 && fit_gate_up(k, *units, rest, iterations)) {
      rest.add_(row_product(units->values, down[k], outputs_buffer_));
      units = &units_of_.of(experts[k], entries);
      rest.sub_(row_product(units->values, down[k], outputs_buffer_));
    }
    fit_down(k, *units, rest);
    const int64_t D = rest.size(1);
    for_each_task(blocks_of(units->count(), routed_row_block), [&](int64_t b, int) {
      for (int64_t r = b * routed_row_block; r < std::min(units->count(), (b + 1) * routed_row_block); ++r) {
        const float* row = const_data<float>(rest) + r * D;
        std::copy(row, row + D, data<float>(residual) + units->rows[static_cast<size_t>(r)] * D);
      }
    });
  }

  /// Whether a step of the gate and up projections was kept.
  bool fit_gate_up(size_t k, const Units& units, const at::Tensor& rest, int iterations) {
    const int64_t F = down[k].size(1), held_first = units.training, held = units.count() - held_first;
    const at::Tensor input = gathered(tokens_.input, units.rows, input_buffer_);  // [rows, D]
    // What the held-out tokens would lack without this expert.
    at::Tensor without = row_product(units.values, down[k], outputs_buffer_).add(rest).narrow(0, held_first, held);
    std::vector<Routing::Entry> held_entries;
    for (size_t r = static_cast<size_t>(held_first); r < units.rows.size(); ++r) held_entries.push_back({units.rows[r], units.gates[r]});
    const ExpertWeights from = experts[k];
    const at::Tensor from_gate = from.gate.to(at::kFloat), from_up = from.up.to(at::kFloat);
    double best = held_out_square(rest.narrow(0, held_first, held), at::Tensor());
    bool found = false;
    gauss_newton({units, input, rest, down[k], unit_}, iterations, ranks_, [&](const at::Tensor& step) {
      for (const double share : {1.0, 0.5}) {
        const ExpertWeights trial{from_gate.add(step.narrow(0, 0, F), share).to(from.gate.scalar_type()),
                                  from_up.add(step.narrow(0, F, F), share).to(from.up.scalar_type()), from.down};
        const Units& moved = trial_units_of_.of(trial, held_entries);
        const double trial_error = held_out_square(without, row_product(moved.values, down[k], step_buffer_));
        if (!(trial_error < best)) continue;
        best = trial_error;
        experts[k] = trial;
        found = true;
        return true;
      }
      return false;
    });
    return found;
  }

  void fit_down(size_t k, const Units& units, at::Tensor& rest) {
    const at::Tensor units_gram = gram(units.values, units.group_end, ranks_);            // [F, F]
    const at::Tensor right = cross_product(units.values, rest, units.group_end, ranks_);  // [F, D]
    const int64_t held = units.count() - units.training;
    const int64_t first = units.training / routed_row_block * routed_row_block;  // of the whole blocks that hold the held-out rows
    const at::Tensor held_values = units.values.narrow(0, first, padded(units.count(), routed_row_block) - first);
    const at::Tensor held_rest = rest.narrow(0, units.training, held);
    double best = held_out_square(held_rest, at::Tensor());
    at::Tensor best_step;
    for (const double ridge : ridges) {
      const at::Tensor solution = ridge_solution(units_gram, right, ridge, ranks_);  // [F, D]
      if (!solution.defined()) continue;
      const at::Tensor step = solution.t().to(at::kFloat).contiguous();  // [D, F]
      const double trial = held_out_square(held_rest, row_product(held_values, step, step_buffer_).narrow(0, units.training - first, held));
      if (!(trial < best)) continue;
      best = trial;
      best_step = step;
    }
    if (!best_step.defined()) return;
    down[k].add_(best_step);
    rest.sub_(row_product(units.values, best_step, step_buffer_));
  }

  /// Sum of |rest - outputs|^2 over this expert's held-out rows of all ranks; outputs may be undefined: none.
  double held_out_square(const at::Tensor& rest, const at::Tensor& outputs) const {
    std::vector<int64_t> buffer(FixedPointSums::buffer_size(1));
    FixedPointSums sum(buffer);
    const int64_t D = rest.size(1);
    for (int64_t r = 0; r < rest.size(0); ++r) {
      const float* left = const_data<float>(rest) + r * D;
      double square = 0;
      for (int64_t c = 0; c < D; ++c) {
        const double value =
            static_cast<double>(left[c]) - (outputs.defined() ? static_cast<double>(const_data<float>(outputs)[r * D + c]) : 0);
        square += value * value;
      }
      sum.add(0, square / unit_);
    }
    ranks_.all_reduce_sum(buffer);
    return sum.value(0);
  }

  const BlockTokens& tokens_;
  const RoutingRule& rule_;
  const Ranks& ranks_;
  const at::ScalarType router_type_;
  UnitsOfExperts units_of_, trial_units_of_;
  Routing routing_;
  Buffer rest_buffer_, input_buffer_, outputs_buffer_, step_buffer_;
  double unit_ = 1, held_out_target_ = 1;
};

/// Tries other router rows, and goes back where the held-out error does not fall.
void try_rows(Fit& fit, const std::string& what, const at::Tensor& rows, ReconstructionReport& report) {
  const at::Tensor old_rows = fit.rows, old_residual = fit.residual;
  const double before = fit.error;
  fit.set_rows(rows);
  report.steps.push_back({what, fit.error, fit.error < before});
  if (!report.steps.back().kept) fit.restore(old_rows, old_residual, before);
}

}  // namespace

SparseBlock reconstruct(const BlockTokens& tokens, const ReconstructionTask& task, SparseBlock block, const Compute& compute,
                        const Ranks& ranks, ReconstructionReport& report) {
  Fit fit(tokens, task.routing, block, compute, ranks);
  report.layer = task.plan.layer;
  report.start_error = fit.error;
  const at::Tensor original = task.router.to(at::kFloat).contiguous();
  const Reconstruction what = task.recipe.reconstruction;
  if (task.recipe.router == RouterMerge::fitted) {
    const RouterTokens router_tokens(tokens);
    const at::Tensor linear = rows_by_least_squares(router_tokens, original, task.plan, fit.rows, ranks);
    try_rows(fit, "router: least squares to the members", linear, report);
    try_rows(fit, "router: cross entropy to the members",
             rows_by_cross_entropy(router_tokens, original, task.plan, task.routing, linear, ranks), report);
  }
  const auto fit_experts = [&](int iterations) {
    fit.fit_experts(iterations);
    report.steps.push_back({iterations > 0 ? "experts" : "down projections", fit.error, true});
  };
  if (what == Reconstruction::full) fit_experts(0);
  std::vector<int64_t> all_tokens{tokens.input.size(0)};
  ranks.all_reduce_sum(all_tokens);
  const int64_t every = (all_tokens[0] + most_output_tokens - 1) / most_output_tokens;
  for (int round = 0; round < task.recipe.rounds && what != Reconstruction::none; ++round) {
    const TokenOutputs outputs = token_outputs(tokens, every, fit.experts, fit.down, compute);
    try_rows(fit, "router: output error", rows_by_output_error(outputs, task.routing, fit.rows, ranks), report);
    if (what != Reconstruction::full) break;
    fit_experts(gauss_newton_iterations);
  }
  report.error = fit.error;
  for (size_t k = 0; k < block.experts.size(); ++k) {
    ExpertWeights& expert = block.experts[k];
    expert = {fit.experts[k].gate, fit.experts[k].up, fit.down[k].to(expert.down.scalar_type())};
  }
  block.router = fit.rows.to(block.router.scalar_type());
  return block;
}

}  // namespace hcsmoe
