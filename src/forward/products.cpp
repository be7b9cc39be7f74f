#include "forward/products.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm_ops.h>

namespace hcsmoe {

void for_each_task(int64_t tasks, const std::function<void(int64_t, int)>& task) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    const int thread = at::get_thread_num();
    for (int64_t i = begin; i < end; ++i) task(i, thread);
  });
}

void block_product(const at::Tensor& x, const at::Tensor& w, at::Tensor& out) { at::_ops::mm_out::call(x, w.t(), out); }

at::Tensor Buffer::get(int64_t rows, int64_t columns, at::ScalarType dtype, bool zero) {
  const int64_t needed = rows * columns;
  if (!storage_.defined() || storage_.scalar_type() != dtype || storage_.numel() < needed) {
    storage_ = at::Tensor();  // free the old one first
    storage_ = at::empty({needed}, at::TensorOptions().dtype(dtype));
  }
  at::Tensor view = storage_.narrow(0, 0, needed).view({rows, columns});
  if (zero) view.zero_();
  return view;
}

}  // namespace hcsmoe
