#include "reconstruction/block_fit.h"

#include <algorithm>
#include <cmath>

#include "forward/row_kernels.h"
#include "hcsmoe/error.h"
#include "reconstruction/gauss_newton.h"
#include "reconstruction/normal_equations.h"
#include "reconstruction/row_sums.h"

namespace hcsmoe {
namespace {

constexpr double ridges[] = {1e-3, 1e-2, 1e-1};              // shares of the Gram matrix's mean diagonal
constexpr int64_t fewest_training = 8, fewest_held_out = 2;  // tokens to fit an expert on

}  // namespace

BlockFit::BlockFit(const BlockTokens& tokens, const RoutingRule& rule_, const SparseBlock& block, const Compute& compute,
                   const Ranks& ranks)
    : experts(block.experts),
      rule(rule_),
      tokens_(tokens),
      ranks_(ranks),
      router_type_(block.router.scalar_type()),
      units_of_(tokens.input, tokens.groups, compute),
      trial_units_of_(tokens.input, tokens.groups, compute) {
  for (const ExpertWeights& expert : experts) down.push_back(expert.down.to(at::kFloat).contiguous().clone());
  set_unit();
  set_rows(block.router);
}

void BlockFit::set_rows(const at::Tensor& rows_) {
  rows = rows_.to(router_type_).to(at::kFloat).contiguous();
  routing_ = route_rows(tokens_.input, rows, rule);
  const at::Tensor& target = tokens_.target;
  residual = target.clone();
  Buffer product;
  for (size_t k = 0; k < experts.size(); ++k) {
    const Units& units = units_of_.of(experts[k], routing_.of_expert[k]);
    subtract(units, row_product(units.values, down[k], product));
  }
  error = held_out_error(residual);
}

double BlockFit::try_rows(const at::Tensor& new_rows, const std::vector<float>& correction) {
  const at::Tensor old_rows = rows, old_residual = residual;
  const double old_error = error;
  const std::vector<float> old_correction = rule.correction;
  rule.correction = correction;
  set_rows(new_rows);
  const double found = error;
  if (!(found < old_error)) {
    rows = old_rows;
    residual = old_residual;
    error = old_error;
    rule.correction = old_correction;
    routing_ = route_rows(tokens_.input, rows, rule);
  }
  return found;
}

void BlockFit::fit_experts(int iterations) {
  for (size_t k = 0; k < experts.size(); ++k) fit_expert(k, iterations);
  error = held_out_error(residual);
}

double BlockFit::held_out_error(const at::Tensor& rest) const {
  const int64_t D = rest.size(1);
  const auto* const values = const_data<float>(rest);
  const double sum = sum_over_rows(rest.size(0), ranks_, [&](int64_t r) {
    return tokens_.groups.held_out[static_cast<size_t>(r)] != 0 ? squared(values + r * D, D) / unit_ : 0.0;
  });
  return sum / held_out_target_;
}

void BlockFit::set_unit() {
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

void BlockFit::subtract(const Units& units, const at::Tensor& outputs) {
  const int64_t D = residual.size(1);
  for_each_task(blocks_of(units.count(), routed_row_block), [&](int64_t b, int) {
    for (int64_t r = b * routed_row_block; r < std::min(units.count(), (b + 1) * routed_row_block); ++r) {
      float* out = data<float>(residual) + units.rows[static_cast<size_t>(r)] * D;
      add_scaled(const_data<float>(outputs) + r * D, -1.0f, D, out);
    }
  });
}

void BlockFit::fit_expert(size_t k, int iterations) {
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

bool BlockFit::fit_gate_up(size_t k, const Units& units, const at::Tensor& rest, int iterations) {
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

void BlockFit::fit_down(size_t k, const Units& units, at::Tensor& rest) {
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

double BlockFit::held_out_square(const at::Tensor& rest, const at::Tensor& outputs) const {
  const int64_t D = rest.size(1);
  const auto* const left = const_data<float>(rest);
  const auto* const right = outputs.defined() ? const_data<float>(outputs) : nullptr;
  return sum_over_rows(rest.size(0), ranks_, [&](int64_t r) {
    return (right ? squared_difference(left + r * D, right + r * D, D) : squared(left + r * D, D)) / unit_;
  });
}

}  // namespace hcsmoe
