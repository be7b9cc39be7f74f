#include <ATen/ops/empty.h>

#include <cstring>

#include "hcsmoe/error.h"
#include "hcsmoe/merging.h"

namespace hcsmoe {

SparseBlock merged_block(const Checkpoint& checkpoint, const ModelDescription& model, const LayerPlan& plan, const LayerUnits& units,
                         at::Device device) {
  std::vector<at::Tensor> tensors;  // router, its correction biases if the family has them, then gate, up, down of each expert
  merge_layer(
      checkpoint, model, plan,
      [&](const std::string&, const DType& dtype, const std::vector<int64_t>& shape, std::span<const std::byte> bytes) {
        at::Tensor tensor = at::empty(shape, at::TensorOptions().dtype(dtype.torch));
        if (tensor.nbytes() != bytes.size()) throw Error("a merged tensor has another size than its shape");
        std::memcpy(tensor.mutable_data_ptr(), bytes.data(), bytes.size());
        tensors.push_back(tensor);
      },
      units, device);
  const bool biased = !model.names.correction_bias.empty();
  SparseBlock block{tensors[0], {}, {}, biased ? tensors[1] : at::Tensor()};
  for (size_t i = biased ? 2 : 1; i + 2 < tensors.size(); i += 3) block.experts.push_back({tensors[i], tensors[i + 1], tensors[i + 2]});
  return block;
}

}  // namespace hcsmoe
