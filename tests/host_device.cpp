#include "host_device.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>

#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

struct HostDeviceAllocator : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* const memory = std::malloc(bytes + 1);
    if (!memory) throw std::bad_alloc();
    std::memset(memory, 0xff, bytes);  // what nobody wrote is NaN
    return {memory, memory, &std::free, host_device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
HostDeviceAllocator allocator;

bool is_ours(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == host_device.type(); }

constexpr c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<at::Device>,
                 std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::Tensor(at::detail::empty_generic_symint(size, &allocator, keys, type.value_or(at::kFloat), format));
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> type,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::Tensor(at::detail::empty_strided_symint_generic(size, stride, &allocator, keys, type.value_or(at::kFloat)));
}

/// A CPU tensor on the same memory. An empty one may be resized by an operation, so it gets memory of its own.
at::Tensor in_host_memory(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
  return at::from_blob(tensor.mutable_data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  (is_ours(to) ? in_host_memory(to) : to).copy_(is_ours(from) ? in_host_memory(from) : from);
  return to;
}

at::Tensor copy_of(const at::Tensor& result) {
  at::Tensor copy = at::empty_strided(result.sizes(), result.strides(), result.options().device(host_device));
  in_host_memory(copy).copy_(result);
  return copy;
}

/// Runs any other operation on views in host memory.
void run_in_host_memory(const c10::OperatorHandle& operation, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = operation.schema();
  const size_t arguments = schema.arguments().size();
  std::vector<std::pair<at::Tensor, at::Tensor>> views;  // a tensor, and its view
  const auto view_of = [&](const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (!is_ours(tensor)) {
      if (tensor.dim() == 0) return tensor;
      throw Error(schema.name() + " on tensors of two devices");
    }
    views.emplace_back(tensor, in_host_memory(tensor));
    return views.back().second;
  };
  const size_t begin = stack->size() - arguments;
  for (size_t i = begin; i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = view_of(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(view_of(tensor));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
        list.push_back(tensor ? std::optional<at::Tensor>(view_of(*tensor)) : std::nullopt);
      }
      value = list;
    } else if (value.isDevice()) {
      value = c10::IValue(at::Device(at::kCPU));
    }
  }
  operation.callBoxed(stack);
  const auto back = [&](const at::Tensor& result) {
    if (!result.defined()) return result;
    for (const auto& [tensor, view] : views) {
      if (!view.is_same(result)) continue;
      if (tensor.sizes() != result.sizes()) {
        const at::Tensor resized = copy_of(result);
        tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(resized.storage());
        tensor.unsafeGetTensorImpl()->set_sizes_and_strides(resized.sizes(), resized.strides());
      }
      return tensor;
    }
    return copy_of(result);
  };
  const size_t results = schema.returns().size();
  for (size_t i = stack->size() - results; i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = back(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(back(tensor));
      value = list;
    }
  }
}

}  // namespace
}  // namespace hcsmoe

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(PrivateUse1, NoOpDeviceGuardImpl<DeviceType::PrivateUse1>);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", hcsmoe::empty);
  library.impl("empty_strided", hcsmoe::empty_strided);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("_copy_from", hcsmoe::copy_from);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&hcsmoe::run_in_host_memory>()); }
