#include "forward/products.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm_ops.h>

#include <algorithm>

/// Of MKL, which libtorch brings on x86: how many threads the calling thread's calls take. Returns what was set before.
extern "C" int MKL_Set_Num_Threads_Local(int) __attribute__((weak));

namespace hcsmoe {
namespace {

/// While it lives, LAPACK and BLAS of this thread take one thread and know it. Inside a parallel region they take one anyway, but choose
/// their algorithm by how many there could be, and so by the number of threads of the rank.
class OneThread {
 public:
  OneThread() : before_(MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0) {}
  ~OneThread() {
    if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(before_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  const int before_;
};

}  // namespace

void for_each_task(int64_t tasks, const std::function<void(int64_t, int)>& task) {
  if (tasks < 1) return;
  // A range of one would not be a parallel region: the products in it would take all threads.
  at::parallel_for(0, std::max<int64_t>(tasks, 2), 1, [&](int64_t begin, int64_t end) {
    const OneThread one;
    const int thread = at::get_thread_num();
    for (int64_t i = begin; i < std::min(end, tasks); ++i) task(i, thread);
  });
}

void block_product(const at::Tensor& x, const at::Tensor& w, at::Tensor& out) { at::_ops::mm_out::call(x, w.t(), out); }

at::Tensor Buffer::get(int64_t rows, int64_t columns, const at::TensorOptions& type, bool zero) {
  const int64_t needed = rows * columns;
  const bool fits = storage_.defined() && storage_.scalar_type() == type.dtype() && storage_.device() == type.device();
  if (!fits || storage_.numel() < needed) {
    storage_ = at::Tensor();  // free the old one first
    storage_ = at::empty({needed}, type);
  }
  at::Tensor view = storage_.narrow(0, 0, needed).view({rows, columns});
  if (zero) view.zero_();
  return view;
}

}  // namespace hcsmoe
