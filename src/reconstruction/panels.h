#pragma once
// Matrices that every rank needs and the ranks make together: panels of rows are dealt to ranks and threads.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "forward/products.h"
#include "hcsmoe/ranks.h"

namespace hcsmoe {

inline constexpr int64_t panel_rows = 128;

/// make(first, width) gives rows [first, first + width) as a contiguous [width, columns] of this type; it runs on any thread of any rank.
/// The whole matrix, on every rank. Collective.
template <class Make>
at::Tensor in_panels(int64_t rows, int64_t columns, at::ScalarType type, const Ranks& ranks, const Make& make) {
  const int64_t P = ranks.size(), count = blocks_of(rows, panel_rows);
  at::Tensor result = at::empty({rows, columns}, type);
  const size_t row_bytes = static_cast<size_t>(columns) * result.element_size();
  auto* const bytes = static_cast<char*>(result.mutable_data_ptr());
  const auto width = [&](int64_t p) { return std::min(panel_rows, rows - p * panel_rows); };
  const auto panel = [&](int64_t p) { return bytes + static_cast<size_t>(p * panel_rows) * row_bytes; };
  const auto make_panel = [&](int64_t p) {
    const at::Tensor made = make(p * panel_rows, width(p));
    std::memcpy(panel(p), made.const_data_ptr(), static_cast<size_t>(width(p)) * row_bytes);
  };
  const int64_t mine = count > ranks.rank() ? (count - ranks.rank() + P - 1) / P : 0;
  for_each_task(mine, [&](int64_t i, int) { make_panel(ranks.rank() + i * P); });
  for (int root = 0; root < P && P > 1; ++root) {
    std::string part;
    for (int64_t p = root; p < count && root == ranks.rank(); p += P) part.append(panel(p), static_cast<size_t>(width(p)) * row_bytes);
    ranks.broadcast(part, root);
    size_t from = 0;
    for (int64_t p = root; p < count; p += P) {
      const size_t size = static_cast<size_t>(width(p)) * row_bytes;
      std::memcpy(panel(p), part.data() + from, size);
      from += size;
    }
  }
  return result;
}

}  // namespace hcsmoe
