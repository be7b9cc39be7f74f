#include "evaluation/compressed_block.h"

#include <ATen/ops/empty.h>

#include <cstring>
#include <map>

#include "hcsmoe/error.h"
#include "hcsmoe/merging.h"

namespace hcsmoe {

SparseBlock compressed_block(const Checkpoint& checkpoint, const ModelDescription& model, const LayerPlan& plan, RouterMerge router) {
  std::map<std::string, at::Tensor> tensors;
  merge_layer(checkpoint, model, plan,
              [&](const std::string& name, const DType& dtype, const std::vector<int64_t>& shape, std::span<const std::byte> bytes) {
                at::Tensor tensor = at::empty(shape, at::TensorOptions().dtype(dtype.torch));
                if (tensor.nbytes() != bytes.size()) throw Error("tensor " + name + " was merged to another size than its shape says");
                std::memcpy(tensor.mutable_data_ptr(), bytes.data(), bytes.size());
                tensors[name] = tensor;
              });
  SparseBlock block;
  for (size_t k = 0; k < plan.clusters.size(); ++k) {
    const auto part = [&](ExpertPart which) { return tensors.at(expert_tensor_name(model, plan.layer, static_cast<int64_t>(k), which)); };
    block.experts.push_back({part(ExpertPart::gate), part(ExpertPart::up), part(ExpertPart::down)});
  }
  const std::string name = tensor_name(model.names.router, plan.layer);
  if (router != RouterMerge::alias) {
    block.router = tensors.at(name);
    return block;
  }
  std::map<int64_t, int64_t> cluster_of;  // of the experts that are in one, ascending
  for (size_t k = 0; k < plan.clusters.size(); ++k) {
    for (const int64_t expert : plan.clusters[k].members) cluster_of[expert] = static_cast<int64_t>(k);
  }
  const at::Tensor rows = checkpoint.tensor(name);  // [E, D]
  block.router = at::empty({static_cast<int64_t>(cluster_of.size()), rows.size(1)}, rows.options());
  for (const auto& [expert, cluster] : cluster_of) {
    block.router[static_cast<int64_t>(block.expert_of_row.size())].copy_(rows[expert]);
    block.expert_of_row.push_back(cluster);
  }
  return block;
}

}  // namespace hcsmoe
