#include "reconstruction/units.h"

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
      thread_up_(static_cast<size_t>(compute.threads)) {}

const Units& UnitsOfExperts::of(const ExpertWeights& expert, const std::vector<Routing::Entry>& entries, bool slopes) {
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
  units.values = values_.get(padded(n, routed_row_block), F, at::kFloat);
  units.gate_slope = slopes ? gate_slope_.get(padded(n, routed_row_block), F, at::kFloat) : at::Tensor();
  units.up_slope = slopes ? up_slope_.get(padded(n, routed_row_block), F, at::kFloat) : at::Tensor();
  const bool half = compute_.dtype == at::kBFloat16;
  for_each_task(blocks_of(n, routed_row_block), [&](int64_t b, int thread) {
    const auto i = static_cast<size_t>(thread);
    const int64_t begin = b * routed_row_block, here = std::min(routed_row_block, n - begin);
    at::Tensor x = thread_rows_[i].get(routed_row_block, D, compute_.dtype);
    for (int64_t r = 0; r < here; ++r) {
      const float* row = const_data<float>(input_) + units.rows[static_cast<size_t>(begin + r)] * D;
      if (half) {
        to_bfloat16(row, D, data<uint16_t>(x) + r * D);
      } else {
        std::memcpy(data<float>(x) + r * D, row, static_cast<size_t>(D) * sizeof(float));
      }
    }
    if (here < routed_row_block) x.narrow(0, here, routed_row_block - here).zero_();
    at::Tensor g = thread_gate_[i].get(routed_row_block, F, compute_.dtype), u = thread_up_[i].get(routed_row_block, F, compute_.dtype);
    block_product(x, gate, g);
    block_product(x, up, u);
    float* values = data<float>(units.values) + begin * F;
    if (slopes) {
      Buffer wide_gate, wide_up;
      if (half) {
        const at::Tensor narrow_gate = g, narrow_up = u;
        g = wide_gate.get(routed_row_block, F, at::kFloat);
        u = wide_up.get(routed_row_block, F, at::kFloat);
        to_float(const_data<uint16_t>(narrow_gate), routed_row_block * F, data<float>(g));
        to_float(const_data<uint16_t>(narrow_up), routed_row_block * F, data<float>(u));
      }
      for (int64_t r = 0; r < routed_row_block; ++r) {
        const int64_t at = (begin + r) * F;
        gated_slopes(const_data<float>(g) + r * F, const_data<float>(u) + r * F, r < here ? weights[static_cast<size_t>(begin + r)] : 0, F,
                     values + r * F, data<float>(units.gate_slope) + at, data<float>(units.up_slope) + at);
      }
      return;
    }
    if (half) {
      gated_units(data<uint16_t>(g), const_data<uint16_t>(u), routed_row_block, F);
      to_float(const_data<uint16_t>(g), routed_row_block * F, values);
    } else {
      gated_units(data<float>(g), const_data<float>(u), routed_row_block, F);
      std::memcpy(values, const_data<float>(g), static_cast<size_t>(routed_row_block * F) * sizeof(float));
    }
    for (int64_t r = 0; r < routed_row_block; ++r) {
      const float weight = r < here ? weights[static_cast<size_t>(begin + r)] : 0;
      float* const row = values + r * F;
      for (int64_t c = 0; c < F; ++c) row[c] *= weight;
    }
  });
  return units;
}

at::Tensor gathered(const at::Tensor& x, const std::vector<int32_t>& rows, Buffer& buffer) {
  const auto n = static_cast<int64_t>(rows.size());
  const int64_t C = x.size(1);
  at::Tensor result = buffer.get(padded(n, routed_row_block), C, at::kFloat);
  for_each_task(blocks_of(n, routed_row_block), [&](int64_t b, int) {
    const int64_t begin = b * routed_row_block, end = std::min(n, begin + routed_row_block);
    float* out = data<float>(result) + begin * C;
    for (int64_t r = begin; r < end; ++r, out += C) {
      std::memcpy(out, const_data<float>(x) + rows[static_cast<size_t>(r)] * C, static_cast<size_t>(C) * sizeof(float));
    }
    std::fill(out, out + (begin + routed_row_block - end) * C, 0.0f);
  });
  return result;
}

at::Tensor row_product(const at::Tensor& a, const at::Tensor& w, Buffer& buffer) {
  at::Tensor result = buffer.get(a.size(0), w.size(0), at::kFloat);
  for_each_task(a.size(0) / routed_row_block, [&](int64_t b, int) {
    at::Tensor block = result.narrow(0, b * routed_row_block, routed_row_block);
    block_product(a.narrow(0, b * routed_row_block, routed_row_block), w, block);
  });
  return result;
}

}  // namespace hcsmoe
