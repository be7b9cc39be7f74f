#include "reconstruction/normal_equations.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cholesky_inverse.h>
#include <ATen/ops/cholesky_solve.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/mm_ops.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "forward/products.h"
#include "forward/row_kernels.h"
#include "reconstruction/panels.h"
#include "statistics/bounded_sums.h"

namespace hcsmoe {
namespace {

/// The largest magnitude in the first n rows, over all ranks.
double largest(const at::Tensor& x, int64_t n, const Ranks& ranks) {
  const int64_t blocks = blocks_of(n, row_block), C = x.size(1);
  std::vector<float> found(static_cast<size_t>(blocks));
  for_each_task(blocks, [&](int64_t b, int) {
    const at::Tensor rows = x.narrow(0, b * row_block, std::min(row_block, n - b * row_block)).to(at::kFloat);
    found[static_cast<size_t>(b)] = largest_magnitude(const_data<float>(rows), rows.size(0) * C);
  });
  const float mine = found.empty() ? 0 : *std::max_element(found.begin(), found.end());
  return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(ranks.all_reduce_max(std::bit_cast<uint32_t>(mine)))));
}

// Rows of one product over tokens. Shapes are few, because in bfloat16 each has a kernel of its own that oneDNN compiles and keeps.
constexpr int64_t chunk_rows = 512, chunk_step = 32;
// What a thread makes of a product at a time: large enough for the product, small enough that its sums stay in a cache.
constexpr int64_t tile_rows = 768, tile_columns = 256;

/// The groups' rows, each group with zero rows behind it that make it a multiple of chunk_step.
at::Tensor with_padded_groups(const at::Tensor& x, const std::vector<int64_t>& group_end, Buffer& buffer) {
  std::vector<int64_t> from{0}, to{0};
  for (const int64_t end : group_end) {
    to.push_back(to.back() + padded(end - from.back(), chunk_step));
    from.push_back(end);
  }
  at::Tensor result = buffer.get(to.back(), x.size(1), x.scalar_type());
  const size_t row_bytes = static_cast<size_t>(x.size(1)) * x.element_size();
  const auto* const in = static_cast<const char*>(x.const_data_ptr());
  auto* const out = static_cast<char*>(result.mutable_data_ptr());
  for_each_task(static_cast<int64_t>(group_end.size()), [&](int64_t task, int) {
    const auto g = static_cast<size_t>(task);
    const size_t bytes = static_cast<size_t>(from[g + 1] - from[g]) * row_bytes, all = static_cast<size_t>(to[g + 1] - to[g]) * row_bytes;
    char* const group = out + static_cast<size_t>(to[g]) * row_bytes;
    std::memcpy(group, in + static_cast<size_t>(from[g]) * row_bytes, bytes);
    std::memset(group + bytes, 0, all - bytes);
  });
  return result;
}

/// a^T b; of a symmetric one, with b = a, at least what is on and below the diagonal.
BoundedSums summed_products(const at::Tensor& a, const at::Tensor& b, const std::vector<int64_t>& group_end, GroupBuffers& buffers,
                            const Ranks& ranks) {
  const int64_t I = a.size(1), O = b.size(1), n = group_end.empty() ? 0 : group_end.back();
  std::vector<int64_t> rows{n};
  ranks.all_reduce_sum(rows);
  const auto margin = 2 * static_cast<double>(std::max<int64_t>(rows[0], 1));  // 2: of the products' own rounding
  BoundedSums sums(I * O, margin * largest(a, n, ranks) * largest(b, n, ranks), buffers.sums);
  const bool symmetric = a.is_same(b);
  const at::Tensor left = with_padded_groups(a, group_end, buffers.left);
  const at::Tensor right = symmetric ? left : with_padded_groups(b, group_end, buffers.right);
  std::vector<Buffer> products(static_cast<size_t>(at::get_num_threads()));
  const int64_t across = blocks_of(O, tile_columns);
  for_each_task(blocks_of(I, tile_rows) * across, [&](int64_t task, int thread) {
    const int64_t first = task % across * tile_columns, width = std::min(tile_columns, O - first);
    const int64_t bottom = std::min(I, (task / across + 1) * tile_rows);
    const int64_t top = std::max(task / across * tile_rows, symmetric ? first : 0), height = bottom - top;
    if (height <= 0) return;
    at::Tensor product = products[static_cast<size_t>(thread)].get(height, width, a.scalar_type());
    int64_t group_begin = 0, at = 0;  // row of left
    for (const int64_t group_end_here : group_end) {
      const int64_t end = at + padded(group_end_here - group_begin, chunk_step);
      while (at < end) {
        const int64_t chunk = std::min(chunk_rows, end - at);
        at::_ops::mm_out::call(left.narrow(0, at, chunk).narrow(1, top, height).t(), right.narrow(0, at, chunk).narrow(1, first, width),
                               product);
        for (int64_t i = top; i < bottom; ++i) {
          int64_t* const units = sums.units() + i * O + first;
          if (a.scalar_type() == at::kFloat) {
            quantised_add(const_data<float>(product) + (i - top) * width, width, sums.scale(), units);
          } else {
            quantised_add(const_data<uint16_t>(product) + (i - top) * width, width, sums.scale(), units);
          }
        }
        at += chunk;
      }
      group_begin = group_end_here;
    }
  });
  sums.all_reduce(ranks);
  return sums;
}

/// A copy of this type with the ridge on its diagonal, rounded once.
template <class T>
at::Tensor with_ridge(const Damped& from, at::ScalarType type) {
  const int64_t n = from.matrix.size(0);
  const auto* const values = const_data<double>(from.matrix);
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) trace += values[i * n + i];
  const double ridge = from.share * trace / static_cast<double>(n);
  const at::Tensor result = from.matrix.to(type, false, true);
  for (int64_t i = 0; i < n; ++i) data<T>(result)[i * n + i] = static_cast<T>(values[i * n + i] + ridge);
  return result;
}

/// The lower Cholesky factor, or none.
at::Tensor factor_of(const at::Tensor& matrix) {
  const auto [factor, info] = at::linalg_cholesky_ex(matrix);
  return *info.const_data_ptr<int>() == 0 ? factor : at::Tensor();
}

/// make(Damped) gives a float32 matrix of its size, or none; the matrices are dealt to ranks and threads. All, on every rank.
template <class Make>
std::vector<at::Tensor> dealt(const std::vector<Damped>& matrices, const Ranks& ranks, const Make& make) {
  const auto count = static_cast<int64_t>(matrices.size()), P = static_cast<int64_t>(ranks.size());
  std::vector<at::Tensor> made(matrices.size());
  const int64_t mine = count > ranks.rank() ? (count - ranks.rank() + P - 1) / P : 0;
  for_each_task(mine, [&](int64_t i, int) {
    const auto at = static_cast<size_t>(ranks.rank() + i * P);
    if (const at::Tensor result = make(matrices[at]); result.defined()) made[at] = result.contiguous();
  });
  for (int64_t i = 0; i < count && P > 1; ++i) {
    at::Tensor& result = made[static_cast<size_t>(i)];
    std::string bytes;
    if (result.defined()) bytes.assign(static_cast<const char*>(result.const_data_ptr()), result.nbytes());
    ranks.broadcast(bytes, ranks.owner_of(i));
    if (result.defined() || bytes.empty()) continue;
    result = at::empty(matrices[static_cast<size_t>(i)].matrix.sizes(), at::kFloat);
    std::memcpy(result.mutable_data_ptr(), bytes.data(), bytes.size());
  }
  return made;
}

}  // namespace

at::Tensor gram(const at::Tensor& a, const std::vector<int64_t>& group_end, GroupBuffers& buffers, const Ranks& ranks) {
  const Span span(ranks.trace(), Activity::reconstructing, "Gram matrix");
  const int64_t I = a.size(1);
  const BoundedSums sums = summed_products(a, a, group_end, buffers, ranks);
  at::Tensor result = at::empty({I, I}, at::kDouble);
  auto* const values = data<double>(result);
  constexpr int64_t side = 64;  // of a square that is mirrored at a time
  for_each_task(blocks_of(I, side), [&](int64_t block, int) {
    for (int64_t first = 0; first < (block + 1) * side; first += side) {
      for (int64_t i = block * side; i < std::min(I, (block + 1) * side); ++i) {
        for (int64_t j = first; j < std::min(i + 1, first + side); ++j) values[i * I + j] = values[j * I + i] = sums.value(i * I + j);
      }
    }
  });
  return result;
}

at::Tensor cross_product(const at::Tensor& a, const at::Tensor& b, const std::vector<int64_t>& group_end, GroupBuffers& buffers,
                         const Ranks& ranks) {
  const Span span(ranks.trace(), Activity::reconstructing, "right-hand side");
  const BoundedSums sums = summed_products(a, b, group_end, buffers, ranks);
  at::Tensor result = at::empty({a.size(1), b.size(1)}, at::kFloat);
  auto* const values = data<float>(result);
  const int64_t O = result.size(1);
  for_each_task(result.size(0), [&](int64_t i, int) {
    for (int64_t j = i * O; j < (i + 1) * O; ++j) values[j] = static_cast<float>(sums.value(j));
  });
  return result;
}

std::vector<at::Tensor> cholesky_factors(const std::vector<Damped>& matrices, const Ranks& ranks) {
  const Span span(ranks.trace(), Activity::reconstructing, "factorisation");
  return dealt(matrices, ranks, [](const Damped& from) {
    const at::Tensor factor = factor_of(with_ridge<double>(from, at::kDouble));
    return factor.defined() ? factor.to(at::kFloat) : factor;
  });
}

at::Tensor solved(const at::Tensor& factor, const at::Tensor& right, const Ranks& ranks) {
  const Span span(ranks.trace(), Activity::reconstructing, "solution");
  return in_panels(right.size(1), right.size(0), at::kFloat, ranks, [&](int64_t first, int64_t width) {
    return at::cholesky_solve(right.narrow(1, first, width).contiguous(), factor).t().contiguous();
  });
}

std::vector<at::Tensor> inverses(const std::vector<Damped>& matrices, const Ranks& ranks) {
  const Span span(ranks.trace(), Activity::reconstructing, "inverses");
  return dealt(matrices, ranks, [](const Damped& from) {
    const at::Tensor factor = factor_of(with_ridge<float>(from, at::kFloat));
    return factor.defined() ? at::cholesky_inverse(factor) : factor;
  });
}

}  // namespace hcsmoe
