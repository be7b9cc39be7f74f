#pragma once
// Pointers to the elements of tensors. All code that reads or writes elements takes them from here, so that code which takes a tensor on a
// device for one in host memory is found by any run on a device (tests/host_device.h has one that needs no hardware).

#include <ATen/core/Tensor.h>

#include "hcsmoe/error.h"

namespace hcsmoe {

inline void require_host(const at::Tensor& tensor) {
  if (!tensor.device().is_cpu()) throw Error("a tensor on " + tensor.device().str() + " was taken for one in host memory");
}

template <class T>
T* data(const at::Tensor& tensor) {
  require_host(tensor);
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <class T>
const T* const_data(const at::Tensor& tensor) {
  require_host(tensor);
  return static_cast<const T*>(tensor.const_data_ptr());
}

}  // namespace hcsmoe
