#include "evaluation/row_measures.h"

#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "forward/kernels.h"
#include "support/host_data.h"

namespace hcsmoe {
namespace {

/// log sum exp of each row's logits. In host memory.
std::vector<double> log_sum_exp(const LikelihoodRows& rows) {
  const at::Tensor highest = rows.highest.cpu(), sum = rows.sum.cpu();
  std::vector<double> result;
  for (int64_t r = 0; r < sum.size(0); ++r) result.push_back(const_data<double>(highest)[r] + std::log(const_data<double>(sum)[r]));
  return result;
}

/// Copies the logits of the targets that are among these rows and entries to their places in `logits`, float32 [targets] on the device.
void pick_targets(const LogitsBlock& block, const RowTargets& targets, at::Tensor& logits) {
  std::vector<int64_t> from, to;
  for (int64_t r = 0; r < block.rows; ++r) {
    const auto row = static_cast<size_t>(block.row + r);
    for (size_t t = targets.first[row]; t < targets.first[row + 1]; ++t) {
      const int64_t entry = targets.tokens[t] - block.first;
      if (entry < 0 || entry >= block.n) continue;
      from.push_back(r * block.n + entry);
      to.push_back(static_cast<int64_t>(t));
    }
  }
  if (to.empty()) return;
  const at::Tensor& z = block.z[0];
  const auto on_device = [&](const std::vector<int64_t>& index) {
    return at::tensor(at::ArrayRef<int64_t>(index), at::kLong).to(z.device());
  };
  logits.index_copy_(0, on_device(to), z.view({-1}).index_select(0, on_device(from)));
}

}  // namespace

RowMeasures measure_rows(const FinalRows& model, const FinalRows* reference, const RowTargets& targets, const Compute& compute) {
  const int64_t N = model.count;
  LikelihoodRows rows = likelihood_rows(N, compute), of_reference = likelihood_rows(reference ? N : 0, compute);
  // sum of exp(z - highest z) (z - y), z the reference's logits and y the model's
  const at::Tensor cross = at::zeros({reference ? N : 0}, compute.type(at::kDouble));
  at::Tensor target_logits = at::zeros({static_cast<int64_t>(targets.tokens.size())}, compute.type(at::kFloat));
  std::vector<const FinalRows*> models = {&model};
  if (reference) models.push_back(reference);

  for_each_logits(models, compute, [&](const LogitsBlock& block) {
    LikelihoodRows of_block = rows.of(block.row, block.rows);
    if (reference) {
      LikelihoodRows of_other = of_reference.of(block.row, block.rows);
      at::Tensor crossed = cross.narrow(0, block.row, block.rows);
      compute.kernels->likelihoods(block.z[0], block.first, of_block, &block.z[1], &of_other, &crossed);
    } else {
      compute.kernels->likelihoods(block.z[0], block.first, of_block, nullptr, nullptr, nullptr);
    }
    pick_targets(block, targets, target_logits);
  });

  RowMeasures result;
  const std::vector<double> of_model = log_sum_exp(rows), of_other = log_sum_exp(of_reference);
  const at::Tensor logits = target_logits.cpu(), crossed = cross.cpu(), sum = of_reference.sum.cpu();
  const at::Tensor top = rows.top.cpu(), other_top = of_reference.top.cpu();
  for (size_t r = 0; r < of_model.size(); ++r) {
    for (size_t t = targets.first[r]; t < targets.first[r + 1]; ++t) {
      result.log_probability.push_back(static_cast<double>(const_data<float>(logits)[t]) - of_model[r]);
    }
    if (!reference) continue;
    result.divergence.push_back(std::max(0.0, const_data<double>(crossed)[r] / const_data<double>(sum)[r] - of_other[r] + of_model[r]));
    result.agrees.push_back(const_data<int64_t>(other_top)[r] == const_data<int64_t>(top)[r]);
  }
  return result;
}

}  // namespace hcsmoe
