#pragma once
// Weights in the type and on the device of computation: the stream's or checkpoint's own tensors where both are the same, else converted
// into a buffer that the next weight of the same slot overwrites.

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "forward/products.h"
#include "hcsmoe/trace.h"
#include "hcsmoe/weight_stream.h"

namespace hcsmoe {

class Weights {
 public:
  Weights(const WeightStream& stream, at::ScalarType dtype, at::Device device, Trace* trace = nullptr)
      : find_([&](const std::string& name) { return stream.tensor(name); }), dtype_(dtype), device_(device), trace_(trace) {}
  Weights(const Checkpoint& checkpoint, at::ScalarType dtype, at::Device device, Trace* trace = nullptr)
      : find_([&](const std::string& name) { return checkpoint.tensor(name); }), dtype_(dtype), device_(device), trace_(trace) {}

  /// Valid until the next get with the same slot.
  at::Tensor get(const std::string& name, const std::string& slot) { return get(name, slot, dtype_); }
  at::Tensor get_float(const std::string& name, const std::string& slot) { return get(name, slot, at::kFloat); }
  /// A tensor that is not the checkpoint's.
  at::Tensor convert(const at::Tensor& stored, const std::string& slot) { return convert(stored, slot, dtype_); }
  at::Tensor convert_float(const at::Tensor& stored, const std::string& slot) { return convert(stored, slot, at::kFloat); }

 private:
  at::Tensor get(const std::string& name, const std::string& slot, at::ScalarType dtype) { return convert(find_(name), slot, dtype); }
  at::Tensor convert(const at::Tensor& stored, const std::string& slot, at::ScalarType dtype);
  std::function<at::Tensor(const std::string&)> find_;
  at::ScalarType dtype_;
  at::Device device_;
  Trace* trace_;
  std::map<std::string, Buffer> buffers_;
};

}  // namespace hcsmoe
