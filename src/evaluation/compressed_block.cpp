#include "evaluation/compressed_block.h"

#include <ATen/ops/empty.h>

#include <map>

namespace hcsmoe {

SparseBlock compressed_block(const Checkpoint& checkpoint, const ModelDescription& model, const LayerPlan& plan, RouterMerge router,
                             const LayerUnits& units, at::Device device) {
  SparseBlock block = merged_block(checkpoint, model, plan, units, device);
  if (router != RouterMerge::alias) return block;
  std::map<int64_t, int64_t> cluster_of;  // of the experts that are in one, ascending
  for (size_t k = 0; k < plan.clusters.size(); ++k) {
    for (const int64_t expert : plan.clusters[k].members) cluster_of[expert] = static_cast<int64_t>(k);
  }
  const at::Tensor rows = checkpoint.tensor(tensor_name(model.names.router, plan.layer));  // [E, D]
  const auto R = static_cast<int64_t>(cluster_of.size());
  const bool biased = block.correction_bias.defined();
  const at::Tensor biases = biased ? checkpoint.tensor(tensor_name(model.names.correction_bias, plan.layer)) : at::Tensor();  // [E]
  block.router = at::empty({R, rows.size(1)}, rows.options());
  if (biased) block.correction_bias = at::empty({R}, biases.options());
  for (const auto& [expert, cluster] : cluster_of) {
    if (biased) block.correction_bias[static_cast<int64_t>(block.expert_of_row.size())].copy_(biases[expert]);
    block.router[static_cast<int64_t>(block.expert_of_row.size())].copy_(rows[expert]);
    block.expert_of_row.push_back(cluster);
  }
  return block;
}

}  // namespace hcsmoe
