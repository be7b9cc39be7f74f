// The steps of the reconstruction of one block, each kept or undone by the held-out error.

#include "hcsmoe/reconstruction.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <chrono>

#include "reconstruction/block_fit.h"
#include "reconstruction/router_rows.h"
#include "reconstruction/token_outputs.h"

namespace hcsmoe {
namespace {

constexpr int gauss_newton_iterations = 2;

/// Notes each step in the report.
class Steps {
 public:
  Steps(BlockFit& fit, ReconstructionReport& report) : fit_(fit), report_(report) {}
  /// correction_of(rows): their correction biases.
  template <class MakeRows, class CorrectionOf>
  void rows(const std::string& what, const MakeRows& make_rows, const CorrectionOf& correction_of) {
    const double before = fit_.error;
    const at::Tensor rows = make_rows();
    const double found = fit_.try_rows(rows, correction_of(rows));
    note(what, found, found < before);
  }
  void experts(int iterations) {
    fit_.fit_experts(iterations);
    note(iterations > 0 ? "experts" : "down projections", fit_.error, true);
  }

 private:
  void note(const std::string& what, double error, bool kept) {
    const auto now = std::chrono::steady_clock::now();
    report_.steps.push_back({what, error, kept, std::chrono::duration<double>(now - start_).count()});
    start_ = now;
  }
  BlockFit& fit_;
  ReconstructionReport& report_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

at::Tensor as_tensor(const std::vector<float>& values) {
  at::Tensor result = at::empty({static_cast<int64_t>(values.size())}, at::TensorOptions().dtype(at::kFloat));
  std::copy(values.begin(), values.end(), static_cast<float*>(result.mutable_data_ptr()));
  return result;
}

/// Biases of values that the block's type can hold.
std::vector<float> exported(std::vector<float> biases, const SparseBlock& block) {
  if (biases.empty()) return biases;
  const at::Tensor held = as_tensor(biases).to(block.correction_bias.scalar_type()).to(at::kFloat);
  const auto* const values = static_cast<const float*>(held.const_data_ptr());
  return {values, values + held.numel()};
}

}  // namespace

SparseBlock reconstruct(const BlockTokens& tokens, const ReconstructionTask& task, SparseBlock block, const Compute& compute,
                        const Ranks& ranks, ReconstructionReport& report) {
  const RoutingRule& routing = task.routing;
  BlockFit fit(tokens, block_routing(routing, task.plan.experts, block), block, compute, ranks);
  report.layer = task.plan.layer;
  report.start_error = fit.error;
  Steps steps(fit, report);
  if (task.recipe.router == RouterMerge::fitted) {
    const at::Tensor original = task.router.to(at::kFloat).contiguous();
    const RouterTokens router_tokens(tokens);
    const auto matched = [&](const at::Tensor& rows) {
      return exported(matched_biases(router_tokens, original, task.plan, routing, fit.rule, rows, ranks), block);
    };
    if (!fit.rule.correction.empty()) {
      steps.rows(
          "router: biases to the members' use", [&] { return fit.rows; }, matched);
    }
    at::Tensor linear;
    steps.rows(
        "router: least squares to the members",
        [&] { return linear = rows_by_least_squares(router_tokens, original, task.plan, routing, fit.rows, ranks); }, matched);
    steps.rows(
        "router: cross entropy to the members",
        [&] { return rows_by_cross_entropy(router_tokens, original, task.plan, routing, linear, ranks); }, matched);
  }
  const Reconstruction what = task.recipe.reconstruction;
  if (what == Reconstruction::full) steps.experts(0);
  std::vector<int64_t> all_tokens{tokens.input.size(0)};
  ranks.all_reduce_sum(all_tokens);
  const int64_t every = (all_tokens[0] + most_output_tokens - 1) / most_output_tokens;
  for (int64_t round = 0; round < task.recipe.rounds && what != Reconstruction::none; ++round) {
    steps.rows(
        "router: output error",
        [&] { return rows_by_output_error(token_outputs(tokens, every, fit.experts, fit.down, compute), fit.rule, fit.rows, ranks); },
        [&](const at::Tensor&) { return fit.rule.correction; });
    if (what != Reconstruction::full) break;
    steps.experts(gauss_newton_iterations);
  }
  report.error = fit.error;
  for (size_t k = 0; k < block.experts.size(); ++k) {
    block.experts[k] = {fit.experts[k].gate, fit.experts[k].up, fit.down[k].to(block.experts[k].down.scalar_type())};
  }
  block.router = fit.rows.to(block.router.scalar_type());
  if (block.correction_bias.defined()) block.correction_bias = as_tensor(fit.rule.correction).to(block.correction_bias.scalar_type());
  return block;
}

}  // namespace hcsmoe
