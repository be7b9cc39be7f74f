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

// Of `full`: the first steps and a first round see every `early_every`-th token, where that leaves enough.
constexpr int64_t early_every = 4, fewest_early = 1024;
constexpr int64_t most_early_output_tokens = most_output_tokens / 2;

/// Every n-th calibration token.
class SomeTokens {
 public:
  SomeTokens(const BlockTokens& tokens, int64_t n) {
    groups_.first_token = (tokens.groups.first_token + n - 1) / n;
    std::vector<int32_t> rows;
    int64_t row = 0;
    for (const int64_t end : tokens.groups.end) {
      for (; row < end; ++row) {
        if ((tokens.groups.first_token + row) % n != 0) continue;
        rows.push_back(static_cast<int32_t>(row));
        groups_.held_out.push_back(tokens.groups.held_out[static_cast<size_t>(row)]);
      }
      groups_.end.push_back(static_cast<int64_t>(rows.size()));
    }
    const auto count = static_cast<int64_t>(rows.size());
    input_ = gathered(tokens.input, rows, input_buffer_).narrow(0, 0, count);
    target_ = gathered(tokens.target, rows, target_buffer_).narrow(0, 0, count);
  }
  BlockTokens tokens() const { return {input_, target_, groups_}; }

 private:
  TokenGroups groups_;
  Buffer input_buffer_, target_buffer_;
  at::Tensor input_, target_;
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

/// The steps on one set of tokens, each noted in the report. The first one's time includes what the block starts with.
class Steps {
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();

 public:
  Steps(const BlockTokens& tokens, const ReconstructionTask& task, const SparseBlock& block, const Compute& compute, const Ranks& ranks,
        ReconstructionReport& report)
      : fit(tokens, block_routing(task.routing, task.plan.experts, block), block, compute, ranks),
        tokens_(tokens),
        task_(task),
        block_(block),
        compute_(compute),
        ranks_(ranks),
        report_(report) {}

  void rows_from_members() {
    const Span span = step("router: members");
    const at::Tensor original = task_.router.to(at::kFloat).contiguous();
    const RouterTokens training(tokens_);
    const auto matched = [&](const at::Tensor& rows) {
      return exported(matched_biases(training, original, task_.plan, task_.routing, fit.rule, rows, ranks_), block_);
    };
    if (!fit.rule.correction.empty()) try_rows("router: biases to the members' use", fit.rows, matched(fit.rows));
    const at::Tensor linear = rows_by_least_squares(training, original, task_.plan, task_.routing, fit.rows, ranks_);
    try_rows("router: least squares to the members", linear, matched(linear));
    const at::Tensor rows = rows_by_cross_entropy(training, original, task_.plan, task_.routing, linear, ranks_);
    try_rows("router: cross entropy to the members", rows, matched(rows));
  }
  void rows_from_output_error(int64_t most_tokens) {
    const Span span = step("router: output error of the block");
    std::vector<int64_t> all{tokens_.input.size(0)};
    ranks_.all_reduce_sum(all);
    const int64_t every = (all[0] + most_tokens - 1) / most_tokens;
    const TokenOutputs outputs = token_outputs(tokens_, every, fit.experts, fit.down, compute_);
    try_rows("router: output error", rows_by_output_error(outputs, fit.rule, fit.rows, ranks_), fit.rule.correction);
  }
  void down_projections() {
    const Span span = step("down projections");
    fit.fit_experts(false);
    note("down projections", fit.error, true);
  }
  void experts() {
    const Span span = step("experts");
    fit.fit_experts(true);
    note("experts", fit.error, true);
  }
  /// Of a fit on some of the tokens.
  void take(const BlockFit& early) {
    const Span span = step("on all tokens");
    start_ = std::chrono::steady_clock::now();
    const double before = fit.error, found = fit.try_all(early);
    note("the above, on all tokens", found, found < before);
  }

  BlockFit fit;

 private:
  Span step(const char* name) const { return {compute_.trace, Activity::reconstructing, name, task_.plan.layer}; }
  void try_rows(const std::string& what, const at::Tensor& rows, const std::vector<float>& correction) {
    const double before = fit.error, found = fit.try_rows(rows, correction);
    note(what, found, found < before);
  }
  void note(const std::string& what, double error, bool kept) {
    const auto now = std::chrono::steady_clock::now();
    report_.steps.push_back({what, error, kept, std::chrono::duration<double>(now - start_).count()});
    start_ = now;
  }
  const BlockTokens& tokens_;
  const ReconstructionTask& task_;
  const SparseBlock& block_;
  const Compute& compute_;
  const Ranks& ranks_;
  ReconstructionReport& report_;
};

}  // namespace

SparseBlock reconstruct(const BlockTokens& tokens, const ReconstructionTask& task, SparseBlock block, const Compute& compute,
                        const Ranks& ranks, ReconstructionReport& report) {
  const bool fits_rows = task.recipe.router == RouterMerge::fitted, full = task.recipe.reconstruction == Reconstruction::full;
  const auto start = [&](Steps& steps) {
    if (fits_rows) steps.rows_from_members();
    if (full) steps.down_projections();
  };
  std::vector<int64_t> all{tokens.input.size(0)};
  ranks.all_reduce_sum(all);
  report.layer = task.plan.layer;
  Steps steps(tokens, task, block, compute, ranks, report);
  report.start_error = steps.fit.error;
  if (full && all[0] >= early_every * fewest_early) {
    const double before = steps.fit.error;
    {
      const SomeTokens some(tokens, early_every);
      const BlockTokens early_tokens = some.tokens();
      Steps early(early_tokens, task, block, compute, ranks, report);
      start(early);
      early.rows_from_output_error(most_early_output_tokens);
      early.experts();
      steps.take(early.fit);
    }
    if (!(steps.fit.error < before)) start(steps);
  } else {
    start(steps);
  }
  if (task.recipe.reconstruction != Reconstruction::none && task.recipe.rounds > 0) steps.rows_from_output_error(most_output_tokens);
  for (int64_t round = 0; round < task.recipe.rounds && full; ++round) steps.experts();
  report.error = steps.fit.error;
  for (size_t k = 0; k < block.experts.size(); ++k) {
    const ExpertWeights& expert = steps.fit.experts[k];
    block.experts[k] = {expert.gate, expert.up, steps.fit.down[k].to(block.experts[k].down.scalar_type())};
  }
  block.router = steps.fit.rows.to(block.router.scalar_type());
  if (block.correction_bias.defined()) block.correction_bias = as_tensor(steps.fit.rule.correction).to(block.correction_bias.scalar_type());
  return block;
}

}  // namespace hcsmoe
