// The steps of the reconstruction of one block, each kept or undone by the held-out error.

#include "hcsmoe/reconstruction.h"

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
  template <class MakeRows>
  void rows(const std::string& what, const MakeRows& make_rows) {
    const double before = fit_.error;
    const double found = fit_.try_rows(make_rows());
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

}  // namespace

SparseBlock reconstruct(const BlockTokens& tokens, const ReconstructionTask& task, SparseBlock block, const Compute& compute,
                        const Ranks& ranks, ReconstructionReport& report) {
  BlockFit fit(tokens, task.routing, block, compute, ranks);
  report.layer = task.plan.layer;
  report.start_error = fit.error;
  Steps steps(fit, report);
  if (task.recipe.router == RouterMerge::fitted) {
    const at::Tensor original = task.router.to(at::kFloat).contiguous();
    const RouterTokens router_tokens(tokens);
    at::Tensor linear;
    steps.rows("router: least squares to the members",
               [&] { return linear = rows_by_least_squares(router_tokens, original, task.plan, fit.rows, ranks); });
    steps.rows("router: cross entropy to the members",
               [&] { return rows_by_cross_entropy(router_tokens, original, task.plan, task.routing, linear, ranks); });
  }
  const Reconstruction what = task.recipe.reconstruction;
  if (what == Reconstruction::full) steps.experts(0);
  std::vector<int64_t> all_tokens{tokens.input.size(0)};
  ranks.all_reduce_sum(all_tokens);
  const int64_t every = (all_tokens[0] + most_output_tokens - 1) / most_output_tokens;
  for (int64_t round = 0; round < task.recipe.rounds && what != Reconstruction::none; ++round) {
    steps.rows("router: output error", [&] {
      return rows_by_output_error(token_outputs(tokens, every, fit.experts, fit.down, compute), task.routing, fit.rows, ranks);
    });
    if (what != Reconstruction::full) break;
    steps.experts(gauss_newton_iterations);
  }
  report.error = fit.error;
  for (size_t k = 0; k < block.experts.size(); ++k) {
    block.experts[k] = {fit.experts[k].gate, fit.experts[k].up, fit.down[k].to(block.experts[k].down.scalar_type())};
  }
  block.router = fit.rows.to(block.router.scalar_type());
  return block;
}

}  // namespace hcsmoe
