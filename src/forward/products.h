#pragma once
// Matrix products in blocks of a fixed number of rows, and the loop over tasks that they run in.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "support/host_data.h"

namespace hcsmoe {

inline constexpr int64_t row_block = 512;         // rows of a product over all tokens
inline constexpr int64_t routed_row_block = 128;  // rows of a product over the tokens of one expert

inline int64_t blocks_of(int64_t rows, int64_t block) { return (rows + block - 1) / block; }
inline int64_t padded(int64_t rows, int64_t block) { return blocks_of(rows, block) * block; }

/// task(i, thread) for i in [0, tasks) on this rank's threads. Products inside a task run on that thread alone. Which thread takes which
/// task is fixed by the number of tasks and threads; no result may depend on it.
void for_each_task(int64_t tasks, const std::function<void(int64_t task, int thread)>& task);

/// out = x w^T for one block: x [R, I], w [O, I], out [R, O] contiguous, all of one type.
void block_product(const at::Tensor& x, const at::Tensor& w, at::Tensor& out);

/// A buffer that grows when it must: reused from layer to layer.
class Buffer {
 public:
  /// [rows, columns] of a type, and on a device (a type alone: on the CPU); contents are undefined unless `zero`.
  at::Tensor get(int64_t rows, int64_t columns, const at::TensorOptions& type, bool zero = false);

 private:
  at::Tensor storage_;
};

}  // namespace hcsmoe
