#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention_ops.h>

#include <algorithm>
#include <cstring>

#include "forward/row_kernels.h"
#include "forward/state.h"

namespace hcsmoe {
namespace {

/// 0 where query i may see key j (j <= i, i - j < window), else -infinity. [T, T]
at::Tensor window_mask(int64_t positions, int64_t window, at::ScalarType dtype) {
  const at::Tensor ones = at::ones({positions, positions}, at::TensorOptions().dtype(at::kBool));
  const at::Tensor visible = ones.tril().logical_and(ones.tril(-window).logical_not());
  return at::full({positions, positions}, 0.0, at::TensorOptions().dtype(dtype)).masked_fill(visible.logical_not(), -INFINITY);
}

/// What happens to the heads of a query or key between its projection and the attention. bias and norm may be null.
struct HeadFinish {
  int64_t heads, head_size, rotary_size;
  const float* bias;  // [heads * head_size]
  const float* norm;  // [head_size]
  double norm_epsilon;
};

/// Adds bias, norms and rotates the rows of one block in place; `position`: of each row in its sequence.
void finish_rows(const at::Tensor& block, int64_t rows, const HeadFinish& finish, const RotaryTable* table,
                 const std::vector<int64_t>& position, std::vector<float>& scratch) {
  const auto& [heads, head_size, rotary_size, bias, norm, norm_epsilon] = finish;
  const int64_t width = heads * head_size;
  const bool half = block.scalar_type() == at::kBFloat16;
  scratch.resize(static_cast<size_t>(width));
  for (int64_t r = 0; r < rows; ++r) {
    float* row = half ? scratch.data() : data<float>(block) + r * width;
    if (half) to_float(const_data<uint16_t>(block) + r * width, width, row);
    if (bias) {
      for (int64_t c = 0; c < width; ++c) row[c] += bias[c];
    }
    for (int64_t h = 0; norm && h < heads; ++h) rms_norm(row + h * head_size, norm, norm_epsilon, head_size, row + h * head_size);
    if (table) {
      const int64_t at = position[static_cast<size_t>(r)] * (rotary_size / 2);
      rotate(row, heads, head_size, rotary_size, false, const_data<float>(table->cos) + at, const_data<float>(table->sin) + at);
    }
    if (half) to_bfloat16(row, width, data<uint16_t>(block) + r * width);
  }
}

}  // namespace

void LayerSweep::State::attention() {
  const int64_t D = model.hidden_size, C = model.head_size, H = model.heads, K = model.key_value_heads;
  const int64_t group_rows_wanted = std::max<int64_t>(2 * compute.threads, 4) * row_block;
  const at::Tensor norm = float_weight(model.names.input_norm, "norm");
  const at::Tensor wq = weight(model.names.query, "query"), wk = weight(model.names.key, "key"), wv = weight(model.names.value, "value");
  const at::Tensor wo = weight(model.names.attention_output, "attention output");
  at::Tensor bq, bk, bv, bo;
  if (model.query_key_value_bias) {
    bq = float_weight(bias_of(model.names.query), "query bias");
    bk = float_weight(bias_of(model.names.key), "key bias");
    bv = float_weight(bias_of(model.names.value), "value bias");
  }
  if (model.attention_output_bias) bo = float_weight(bias_of(model.names.attention_output), "attention output bias");
  at::Tensor query_norm, key_norm;
  if (model.query_key_norm) {
    query_norm = float_weight(model.names.query_norm, "query norm");
    key_norm = float_weight(model.names.key_norm, "key norm");
  }
  const auto pointer = [](const at::Tensor& t) { return t.defined() ? const_data<float>(t) : nullptr; };
  const auto window = model.layer[static_cast<size_t>(layer)].sliding_window;

  for (size_t s0 = 0; s0 < sequences.size();) {
    // A group: whole sequences, enough rows to keep the threads busy.
    size_t s1 = s0;
    while (s1 < sequences.size() && (s1 == s0 || first_row[s1 + 1] - first_row[s0] <= group_rows_wanted)) ++s1;
    const int64_t first = first_row[s0], rows = first_row[s1] - first, blocks = blocks_of(rows, row_block);
    at::Tensor x = normed.get(blocks * row_block, D, compute.dtype);
    at::Tensor q = query.get(blocks * row_block, H * C, compute.dtype), k = key.get(blocks * row_block, K * C, compute.dtype);
    at::Tensor v = value.get(blocks * row_block, K * C, compute.dtype);
    at::Tensor y = attended.get(blocks * row_block, H * C, compute.dtype);
    // Rotation tables of the group's lengths, and each row's place in its sequence.
    std::vector<std::pair<const RotaryTable*, int64_t>> place(static_cast<size_t>(rows));
    for (size_t s = s0; s < s1; ++s) {
      const int64_t T = first_row[s + 1] - first_row[s];
      if (!rotary.count(T)) rotary[T] = rotary_table(model.rope, model.rotary_size, T);
      for (int64_t t = 0; t < T; ++t) place[static_cast<size_t>(first_row[s] - first + t)] = {&rotary[T], t};
    }

    for_each_task(blocks, [&](int64_t b, int thread) {
      const int64_t begin = b * row_block, n = std::min(row_block, rows - begin);
      at::Tensor xb = x.narrow(0, begin, row_block);
      norm_rows(first + begin, n, norm, xb, data<float>(thread_float[static_cast<size_t>(thread)].get(1, D, at::kFloat)));
      std::vector<float> scratch;
      const auto project = [&](const at::Tensor& w, const at::Tensor& bias, const at::Tensor& head_norm, at::Tensor& out, int64_t heads,
                               bool rotated) {
        at::Tensor block = out.narrow(0, begin, row_block);
        block_product(xb, w, block);
        const HeadFinish finish{heads, C, model.rotary_size, pointer(bias), pointer(head_norm), model.norm_epsilon};
        if (!rotated) {
          if (bias.defined()) finish_rows(block, n, finish, nullptr, {}, scratch);
          return;
        }
        for (int64_t r = 0; r < n;) {  // runs of rows of one sequence length
          int64_t end = r;
          std::vector<int64_t> position;
          const RotaryTable* table = place[static_cast<size_t>(begin + r)].first;
          while (end < n && place[static_cast<size_t>(begin + end)].first == table) {
            position.push_back(place[static_cast<size_t>(begin + end++)].second);
          }
          finish_rows(block.narrow(0, r, end - r), end - r, finish, table, position, scratch);
          r = end;
        }
      };
      project(wq, bq, query_norm, q, H, true);
      project(wk, bk, key_norm, k, K, true);
      project(wv, bv, {}, v, K, false);
    });

    // One task a sequence and key/value head, each at its sequence's own length.
    const int64_t per_key = H / K;
    std::map<int64_t, at::Tensor> masks;
    if (window) {
      for (size_t s = s0; s < s1; ++s) {
        const int64_t T = first_row[s + 1] - first_row[s];
        if (T > *window && !masks.count(T)) masks[T] = window_mask(T, *window, compute.dtype);
      }
    }
    for_each_task(static_cast<int64_t>(s1 - s0) * K, [&](int64_t task, int) {
      const size_t s = s0 + static_cast<size_t>(task / K);
      const int64_t head = task % K, begin = first_row[s] - first, T = first_row[s + 1] - first_row[s];
      const auto heads = [&](const at::Tensor& buffer, int64_t from, int64_t n) {
        return buffer.narrow(0, begin, T).view({T, -1, C}).narrow(1, from, n).transpose(0, 1).unsqueeze(0);  // [1, n, T, C]
      };
      const at::Tensor qs = heads(q, head * per_key, per_key);
      const at::Tensor ks = heads(k, head, 1).expand({1, per_key, T, C}), vs = heads(v, head, 1).expand({1, per_key, T, C});
      const auto mask = masks.find(T);
      const bool masked = mask != masks.end();
      const at::Tensor out = at::_ops::scaled_dot_product_attention::call(
          qs, ks, vs, masked ? std::optional<at::Tensor>(mask->second) : std::nullopt, 0.0, !masked, std::nullopt, false);
      heads(y, head * per_key, per_key).copy_(out);
    });

    for_each_task(blocks, [&](int64_t b, int thread) {
      const int64_t begin = b * row_block, n = std::min(row_block, rows - begin);
      if (n < row_block) y.narrow(0, begin + n, row_block - n).zero_();
      at::Tensor out = thread_out[static_cast<size_t>(thread)].get(row_block, D, compute.dtype);
      block_product(y.narrow(0, begin, row_block), wo, out);
      for (int64_t r = 0; r < n; ++r) {
        float* residual = data<float>(hidden) + (first + begin + r) * D;
        if (bo.defined()) {
          for (int64_t c = 0; c < D; ++c) residual[c] += const_data<float>(bo)[c];
        }
        if (half()) {
          add_scaled(const_data<uint16_t>(out) + r * D, 1.0f, D, residual);
        } else {
          add_scaled(const_data<float>(out) + r * D, 1.0f, D, residual);
        }
      }
    });
    s0 = s1;
  }
  double attended_pairs = 0;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const auto T = static_cast<double>(first_row[s + 1] - first_row[s]);
    attended_pairs += T * (T + 1) / 2;
  }
  const auto N = static_cast<double>(tokens());
  figures.operations += 2 * N * static_cast<double>(D * C * (2 * H + 2 * K)) + 4 * attended_pairs * static_cast<double>(H * C);
}

}  // namespace hcsmoe
