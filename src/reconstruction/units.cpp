#include "reconstruction/units.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "forward/row_kernels.h"
#include "hcsmoe/error.h"

namespace hcsmoe {

Routing route_rows(const at::Tensor& input, const at::Tensor& router, const RoutingRule& rule) {
  const int64_t N = input.size(0), D = input.size(1), K = router.size(0), k = rule.top_k;
  std::vector<std::pair<int32_t, float>> chosen(static_cast<size_t>(N * k));
  for_each_task(blocks_of(N, row_block), [&](int64_t b, int) {
    const int64_t begin = b * row_block, n = std::min(row_block, N - begin);
    Buffer rows_buffer, logits_buffer;
    at::Tensor rows = rows_buffer.get(row_block, D, at::kFloat), z = logits_buffer.get(row_block, K, at::kFloat);
    std::memcpy(data<float>(rows), const_data<float>(input) + begin * D, static_cast<size_t>(n * D) * sizeof(float));
    if (n < row_block) rows.narrow(0, n, row_block - n).zero_();
    block_product(rows, router, z);
    RoutedToken token;
    for (int64_t r = 0; r < n; ++r) {
      route_token({const_data<float>(z) + r * K, static_cast<size_t>(K)}, rule, token);
      std::copy(token.chosen.begin(), token.chosen.end(), chosen.begin() + (begin + r) * k);
    }
  });
  Routing routing;
  routing.of_expert.resize(static_cast<size_t>(K));
  for (int64_t row = 0; row < N; ++row) {
    for (int64_t j = 0; j < k; ++j) {
      const auto& [expert, weight] = chosen[static_cast<size_t>(row * k + j)];
      routing.of_expert[static_cast<size_t>(expert)].push_back({static_cast<int32_t>(row), weight});
    }
  }
  return routing;
}

UnitsOfExperts::UnitsOfExperts(const at::Tensor& input, const TokenGroups& groups, const Compute& compute)
    : input_(input),
      groups_(groups),
      compute_(compute),
      thread_rows_(static_cast<size_t>(compute.threads)),
      thread_gate_(static_cast<size_t>(compute.threads)),
      thread_up_(static_cast<size_t>(compute.threads)),
      thread_wide_gate_(static_cast<size_t>(compute.threads)),
      thread_wide_up_(static_cast<size_t>(compute.threads)),
      thread_values_(static_cast<size_t>(compute.threads)) {}

const Units& UnitsOfExperts::of(const ExpertWeights& expert, const std::vector<Routing::Entry>& entries, bool slopes) {
  const Span span(compute_.trace, Activity::reconstructing, "expert's units");
  const int64_t D = input_.size(1), F = expert.gate.size(0);
  const auto converted = [&](const at::Tensor& stored, Buffer& buffer) {
    if (stored.scalar_type() == compute_.dtype) return stored;
    return buffer.get(F, D, compute_.dtype).copy_(stored);
  };
  const at::Tensor gate = converted(expert.gate, gate_), up = converted(expert.up, up_);  // [F, D]

  Units& units = units_;
  units.rows.clear();
  units.gates.clear();
  units.group_end.clear();
  std::vector<float>& weights = units.gates;
  std::vector<float> held_weights;
  std::vector<int32_t> held_rows;
  auto entry = entries.begin();
  for (const int64_t end : groups_.end) {
    for (; entry != entries.end() && entry->row < end; ++entry) {
      const bool held = groups_.held_out[static_cast<size_t>(entry->row)] != 0;
      (held ? held_rows : units.rows).push_back(entry->row);
      (held ? held_weights : weights).push_back(entry->weight);
    }
    units.group_end.push_back(static_cast<int64_t>(units.rows.size()));
  }
  units.training = static_cast<int64_t>(units.rows.size());
  units.rows.insert(units.rows.end(), held_rows.begin(), held_rows.end());
  weights.insert(weights.end(), held_weights.begin(), held_weights.end());

  const int64_t n = units.count();
  units.values = values_.get(padded(n, routed_row_block), F, compute_.dtype);
  units.gate_slope = slopes ? gate_slope_.get(padded(n, routed_row_block), F, at::kFloat) : at::Tensor();
  units.up_slope = slopes ? up_slope_.get(padded(n, routed_row_block), F, at::kFloat) : at::Tensor();
  const bool half = compute_.dtype == at::kBFloat16;
  for_each_task(blocks_of(n, routed_row_block), [&](int64_t b, int thread) {
    const auto i = static_cast<size_t>(thread);
    const int64_t begin = b * routed_row_block, here = std::min(routed_row_block, n - begin);
    at::Tensor x = thread_rows_[i].get(routed_row_block, D, compute_.dtype);
    const size_t row_bytes = static_cast<size_t>(D) * x.element_size();
    for (int64_t r = 0; r < here; ++r) {
      const int64_t row = units.rows[static_cast<size_t>(begin + r)];
      if (input_.scalar_type() != compute_.dtype) {
        to_bfloat16(const_data<float>(input_) + row * D, D, data<uint16_t>(x) + r * D);
      } else {
        std::memcpy(static_cast<char*>(x.mutable_data_ptr()) + static_cast<size_t>(r) * row_bytes,
                    static_cast<const char*>(input_.const_data_ptr()) + static_cast<size_t>(row) * row_bytes, row_bytes);
      }
    }
    if (here < routed_row_block) x.narrow(0, here, routed_row_block - here).zero_();
    at::Tensor g = thread_gate_[i].get(routed_row_block, F, compute_.dtype), u = thread_up_[i].get(routed_row_block, F, compute_.dtype);
    block_product(x, gate, g);
    block_product(x, up, u);
    at::Tensor values = units.values.narrow(0, begin, routed_row_block);
    at::Tensor wide_gate = g, wide_up = u, wide_values = values;
    if (half) {
      wide_gate = thread_wide_gate_[i].get(routed_row_block, F, at::kFloat);
      wide_up = thread_wide_up_[i].get(routed_row_block, F, at::kFloat);
      wide_values = thread_values_[i].get(routed_row_block, F, at::kFloat);
      to_float(const_data<uint16_t>(g), routed_row_block * F, data<float>(wide_gate));
      to_float(const_data<uint16_t>(u), routed_row_block * F, data<float>(wide_up));
    }
    if (!slopes) gated_units(data<float>(wide_gate), const_data<float>(wide_up), routed_row_block, F);
    for (int64_t r = 0; r < routed_row_block; ++r) {
      const float weight = r < here ? weights[static_cast<size_t>(begin + r)] : 0;
      const float* const gate_row = const_data<float>(wide_gate) + r * F;
      float* const row = data<float>(wide_values) + r * F;
      if (slopes) {
        const int64_t at = (begin + r) * F;
        gated_slopes(gate_row, const_data<float>(wide_up) + r * F, weight, F, row, data<float>(units.gate_slope) + at,
                     data<float>(units.up_slope) + at);
      } else {
        for (int64_t c = 0; c < F; ++c) row[c] = weight * gate_row[c];
      }
    }
    if (half) to_bfloat16(const_data<float>(wide_values), routed_row_block * F, data<uint16_t>(values));
  });
  return units;
}

at::Tensor gathered(const at::Tensor& x, const std::vector<int32_t>& rows, Buffer& buffer) {
  const auto n = static_cast<int64_t>(rows.size());
  at::Tensor result = buffer.get(padded(n, routed_row_block), x.size(1), x.scalar_type());
  const size_t row_bytes = static_cast<size_t>(x.size(1)) * x.element_size();
  const auto* const from = static_cast<const char*>(x.const_data_ptr());
  auto* const to = static_cast<char*>(result.mutable_data_ptr());
  for_each_task(blocks_of(n, routed_row_block), [&](int64_t b, int) {
    for (int64_t r = b * routed_row_block; r < (b + 1) * routed_row_block; ++r) {
      char* const row = to + static_cast<size_t>(r) * row_bytes;
      if (r < n) {
        std::memcpy(row, from + static_cast<size_t>(rows[static_cast<size_t>(r)]) * row_bytes, row_bytes);
      } else {
        std::memset(row, 0, row_bytes);
      }
    }
  });
  return result;
}

at::Tensor in_type(const at::Tensor& x, at::ScalarType type, Buffer& buffer) {
  if (x.scalar_type() == type) return x;
  const int64_t C = x.size(1), n = x.size(0);
  at::Tensor result = buffer.get(n, C, type);
  for_each_task(blocks_of(n, routed_row_block), [&](int64_t b, int) {
    const int64_t begin = b * routed_row_block, rows = std::min(routed_row_block, n - begin);
    to_bfloat16(const_data<float>(x) + begin * C, rows * C, data<uint16_t>(result) + begin * C);
  });
  return result;
}

at::Tensor row_product(const at::Tensor& a, const at::Tensor& w, Buffer& buffer) {
  const at::Tensor weights = w.to(a.scalar_type());
  at::Tensor result = buffer.get(a.size(0), w.size(0), at::kFloat);
  const bool half = a.scalar_type() != at::kFloat;
  for_each_task(a.size(0) / routed_row_block, [&](int64_t b, int) {
    const at::Tensor rows = a.narrow(0, b * routed_row_block, routed_row_block);
    at::Tensor block = result.narrow(0, b * routed_row_block, routed_row_block);
    if (!half) return block_product(rows, weights, block);
    at::Tensor narrow = at::empty(block.sizes(), a.options());
    block_product(rows, weights, narrow);
    to_float(const_data<uint16_t>(narrow), narrow.numel(), data<float>(block));
  });
  return result;
}

}  // namespace hcsmoe
