#include "reconstruction/block_fit.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "forward/row_kernels.h"
#include "hcsmoe/error.h"
#include "reconstruction/normal_equations.h"
#include "reconstruction/row_sums.h"

namespace hcsmoe {
namespace {

constexpr double ridges[] = {1e-3, 1e-2, 1e-1};              // shares of the Gram matrix's mean diagonal
constexpr int64_t most_ridge_outputs = 256;                  // of an expert, evenly spaced, that choose the ridge
constexpr int64_t fewest_training = 8, fewest_held_out = 2;  // tokens to fit an expert on
constexpr int64_t sample_every = 2, fewest_sampled = 1024;   // training rows of an expert for what only a step's shape and length hang on

/// x[rows[i]] -= y[i].
void subtract_rows(const at::Tensor& y, const std::vector<int32_t>& rows, at::Tensor& x) {
  const auto n = static_cast<int64_t>(rows.size()), D = x.size(1);
  for_each_task(blocks_of(n, routed_row_block), [&](int64_t b, int) {
    for (int64_t r = b * routed_row_block; r < std::min(n, (b + 1) * routed_row_block); ++r) {
      add_scaled(const_data<float>(y) + r * D, -1.0f, D, data<float>(x) + rows[static_cast<size_t>(r)] * D);
    }
  });
}

/// Every n-th column.
at::Tensor columns(const at::Tensor& x, int64_t n) { return n == 1 ? x : x.slice(1, 0, x.size(1), n).contiguous(); }

}  // namespace

BlockFit::BlockFit(const BlockTokens& tokens, const RoutingRule& rule_, const SparseBlock& block, const Compute& compute,
                   const Ranks& ranks)
    : experts(block.experts),
      rule(rule_),
      tokens_(tokens),
      ranks_(ranks),
      router_type_(block.router.scalar_type()),
      input_(in_type(tokens.input, compute.dtype, typed_input_buffer_)),
      units_of_(input_, tokens.groups, compute),
      trial_units_of_(input_, tokens.groups, compute) {
  for (const ExpertWeights& expert : experts) down.push_back(expert.down.to(at::kFloat).contiguous().clone());
  for (int64_t row = 0; row < tokens.target.size(0); ++row) {
    if (tokens.groups.held_out[static_cast<size_t>(row)] != 0) held_rows_.push_back(static_cast<int32_t>(row));
  }
  set_unit();
  set_rows(block.router);
}

void BlockFit::set_rows(const at::Tensor& new_rows) {
  rows = new_rows.to(router_type_).to(at::kFloat).contiguous();
  routing_ = route_rows(tokens_.input, rows, rule);
  residual_ = at::Tensor();
  error = held_out_error(routing_);
}

double BlockFit::try_rows(const at::Tensor& new_rows, const std::vector<float>& correction) {
  const at::Tensor exported = new_rows.to(router_type_).to(at::kFloat).contiguous();
  RoutingRule new_rule = rule;
  new_rule.correction = correction;
  Routing routing = route_rows(tokens_.input, exported, new_rule);
  const double found = held_out_error(routing);
  if (!(found < error)) return found;
  rows = exported;
  rule = std::move(new_rule);
  routing_ = std::move(routing);
  residual_ = at::Tensor();
  return error = found;
}

double BlockFit::try_all(const BlockFit& other) {
  const auto before_experts = std::exchange(experts, other.experts);
  const auto before_down = std::exchange(down, other.down);
  const double before = error, found = try_rows(other.rows, other.rule.correction);
  if (found < before) return found;
  experts = before_experts;
  down = before_down;
  return found;
}

void BlockFit::fit_experts(bool gate_and_up) {
  if (!residual_.defined()) set_residual();
  for (size_t k = 0; k < experts.size(); ++k) fit_expert(k, gate_and_up);
  step_buffers_ = {};
  error = held_out_error(gathered(residual_, held_rows_, rest_buffer_));
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
  if (const double all = held_out_error(gathered(tokens_.target, held_rows_, rest_buffer_)); all > 0) held_out_target_ = all;
}

void BlockFit::set_residual() {
  const Span span(ranks_.trace(), Activity::reconstructing, "residual");
  residual_ = tokens_.target.clone();
  for (size_t k = 0; k < experts.size(); ++k) {
    const Units& units = units_of_.of(experts[k], routing_.of_expert[k]);
    subtract_rows(row_product(units.values, down[k], outputs_buffer_), units.rows, residual_);
  }
}

double BlockFit::held_out_error(const Routing& routing) {
  const Span span(ranks_.trace(), Activity::reconstructing, "held-out error");
  at::Tensor rest = gathered(tokens_.target, held_rows_, rest_buffer_);  // [held-out tokens, D]
  std::vector<Routing::Entry> entries;
  std::vector<int32_t> places;
  for (size_t k = 0; k < experts.size(); ++k) {
    entries.clear();
    places.clear();
    auto held = held_rows_.begin();
    for (const Routing::Entry& entry : routing.of_expert[k]) {
      held = std::lower_bound(held, held_rows_.end(), entry.row);
      if (held == held_rows_.end()) break;
      if (*held != entry.row) continue;
      entries.push_back(entry);
      places.push_back(static_cast<int32_t>(held - held_rows_.begin()));
    }
    subtract_rows(row_product(units_of_.of(experts[k], entries).values, down[k], outputs_buffer_), places, rest);
  }
  return held_out_error(rest);
}

double BlockFit::held_out_error(const at::Tensor& rest) const {
  return held_out_square(rest.narrow(0, 0, static_cast<int64_t>(held_rows_.size())), at::Tensor()) / held_out_target_;
}

void BlockFit::fit_expert(size_t k, bool gate_and_up) {
  const Span span(ranks_.trace(), Activity::reconstructing, "expert");
  const std::vector<Routing::Entry>& entries = routing_.of_expert[k];
  const Units* units = &units_of_.of(experts[k], entries, gate_and_up);
  std::vector<int64_t> counts{units->training, units->count() - units->training};
  ranks_.all_reduce_sum(counts);
  if (counts[0] < fewest_training || counts[1] < fewest_held_out) return;
  at::Tensor rest = gathered(residual_, units->rows, rest_buffer_);  // [rows, D]
  if (gate_and_up && fit_gate_up(k, *units, rest, counts[0])) {
    const Units& moved = trial_units_of_.of(experts[k], entries);
    at::Tensor less = units->values;
    rest.add_(row_product(less.sub_(moved.values), down[k], outputs_buffer_));
    units = &moved;
  }
  fit_down(k, *units, rest);
  const int64_t D = rest.size(1);
  for_each_task(blocks_of(units->count(), routed_row_block), [&](int64_t b, int) {
    for (int64_t r = b * routed_row_block; r < std::min(units->count(), (b + 1) * routed_row_block); ++r) {
      const float* row = const_data<float>(rest) + r * D;
      std::copy(row, row + D, data<float>(residual_) + units->rows[static_cast<size_t>(r)] * D);
    }
  });
}

bool BlockFit::fit_gate_up(size_t k, const Units& units, const at::Tensor& rest, int64_t training) {
  const int64_t F = down[k].size(1), held_first = units.training, held = units.count() - held_first;
  const at::Tensor input = gathered(input_, units.rows, input_buffer_);  // [rows, D]
  // An even share of the training rows.
  const int64_t every = std::clamp<int64_t>(training / fewest_sampled, 1, sample_every);
  RowSample sample;
  int64_t row = 0;
  for (const int64_t end : units.group_end) {
    for (; row < end; ++row) {
      if ((tokens_.groups.first_token + units.rows[static_cast<size_t>(row)]) % every == 0)
        sample.rows.push_back(static_cast<int32_t>(row));
    }
    sample.group_end.push_back(static_cast<int64_t>(sample.rows.size()));
  }
  const at::Tensor step = gauss_newton_step({units, input, rest, down[k], sample, unit_}, step_buffers_, ranks_);
  if (!step.defined()) return false;

  // What the held-out tokens would lack without this expert.
  const int64_t first = held_first / routed_row_block * routed_row_block;  // of the whole blocks that hold the held-out rows
  const at::Tensor held_values = units.values.narrow(0, first, padded(units.count(), routed_row_block) - first);
  const at::Tensor held_rest = rest.narrow(0, held_first, held);
  const at::Tensor without = row_product(held_values, down[k], outputs_buffer_).narrow(0, held_first - first, held).add(held_rest);
  std::vector<Routing::Entry> held_entries;
  for (size_t r = static_cast<size_t>(held_first); r < units.rows.size(); ++r) held_entries.push_back({units.rows[r], units.gates[r]});
  const ExpertWeights from = experts[k];
  const at::Tensor from_gate = from.gate.to(at::kFloat), from_up = from.up.to(at::kFloat);
  const double before = held_out_square(held_rest, at::Tensor());
  for (const double share : {1.0, 0.5}) {
    const ExpertWeights trial{from_gate.add(step.narrow(0, 0, F), share).to(from.gate.scalar_type()),
                              from_up.add(step.narrow(0, F, F), share).to(from.up.scalar_type()), from.down};
    const Units& moved = trial_units_of_.of(trial, held_entries);
    if (!(held_out_square(without, row_product(moved.values, down[k], step_buffer_)) < before)) continue;
    experts[k] = trial;
    return true;
  }
  return false;
}

void BlockFit::fit_down(size_t k, const Units& units, at::Tensor& rest) {
  const int64_t D = rest.size(1);
  const at::Tensor units_gram = gram(units.values, units.group_end, step_buffers_.groups, ranks_);  // [F, F]
  const at::Tensor right = cross_product(units.values, in_type(rest, units.values.scalar_type(), right_buffer_), units.group_end,
                                         step_buffers_.groups, ranks_);  // [F, D]
  std::vector<Damped> matrices;
  for (const double ridge : ridges) matrices.push_back({units_gram, ridge});
  const std::vector<at::Tensor> factors = cholesky_factors(matrices, ranks_);

  const int64_t held = units.count() - units.training;
  const int64_t first = units.training / routed_row_block * routed_row_block;  // of the whole blocks that hold the held-out rows
  const at::Tensor held_values = units.values.narrow(0, first, padded(units.count(), routed_row_block) - first);
  const at::Tensor held_rest = rest.narrow(0, units.training, held);
  const auto left = [&](const at::Tensor& some_rest, const at::Tensor& step) {  // [held, some outputs], [some outputs, F]
    return held_out_square(some_rest, row_product(held_values, step, step_buffer_).narrow(0, units.training - first, held));
  };
  // A sample of the outputs chooses the ridge, all of them whether the step stays.
  const int64_t every = (D + most_ridge_outputs - 1) / most_ridge_outputs;
  const at::Tensor some_right = columns(right, every), some_rest = columns(held_rest, every);
  double best = INFINITY;
  at::Tensor best_factor, step;  // step: [D, F]
  for (const at::Tensor& factor : factors) {
    if (!factor.defined()) continue;
    const at::Tensor some_step = solved(factor, some_right, ranks_);
    const double trial = left(some_rest, some_step);
    if (!(trial < best)) continue;
    best = trial;
    best_factor = factor;
    step = some_step;
  }
  if (!best_factor.defined()) return;
  if (every > 1) {
    step = solved(best_factor, right, ranks_);
    best = left(held_rest, step);
  }
  if (!(best < held_out_square(held_rest, at::Tensor()))) return;
  down[k].add_(step);
  rest.sub_(row_product(units.values, step, step_buffer_));
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
