#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention_ops.h>

#include <algorithm>

#include "forward/state.h"

namespace hcsmoe {
namespace {

/// 0 where query i may see key j (j <= i, i - j < window), else -infinity. [T, T]
at::Tensor window_mask(int64_t positions, int64_t window, const at::TensorOptions& type) {
  const at::Tensor ones = at::ones({positions, positions}, type.dtype(at::kBool));
  const at::Tensor visible = ones.tril().logical_and(ones.tril(-window).logical_not());
  return at::full({positions, positions}, 0.0, type).masked_fill(visible.logical_not(), -INFINITY);
}

}  // namespace

RotaryTable LayerSweep::State::rotary_rows(size_t s0, size_t s1, int64_t rotary_size) {
  const int64_t first = first_row[s0], rows = padded(first_row[s1] - first, compute.row_block);
  const RotaryTable result{cos_rows.get(rows, rotary_size / 2, compute.type(at::kFloat)),
                           sin_rows.get(rows, rotary_size / 2, compute.type(at::kFloat))};
  for (size_t s = s0; s < s1; ++s) {
    const int64_t T = first_row[s + 1] - first_row[s];
    if (!rotary.count(T)) rotary[T] = rotary_table(model.rope, rotary_size, T, compute.device);
    result.cos.narrow(0, first_row[s] - first, T).copy_(rotary[T].cos);
    result.sin.narrow(0, first_row[s] - first, T).copy_(rotary[T].sin);
  }
  const int64_t used = first_row[s1] - first;
  result.cos.narrow(0, used, rows - used).zero_();
  result.sin.narrow(0, used, rows - used).zero_();
  return result;
}

void LayerSweep::State::add_projected(const at::Tensor& y, const at::Tensor& w, const at::Tensor& bias, int64_t first, int64_t rows) {
  const int64_t block_size = compute.row_block, D = model.hidden_size;
  kernels.for_each_task(blocks_of(rows, block_size), [&](int64_t b, int thread) {
    const int64_t begin = b * block_size, n = std::min(block_size, rows - begin);
    if (n < block_size) y.narrow(0, begin + n, block_size - n).zero_();
    at::Tensor out = thread_out[static_cast<size_t>(thread)].get(block_size, D, product_type());
    block_product(y.narrow(0, begin, block_size), w, out);
    at::Tensor residual = hidden.narrow(0, first + begin, n);
    kernels.add_rows(out.narrow(0, 0, n), bias, {}, residual);
  });
}

void LayerSweep::State::attention() {
  const int64_t D = model.hidden_size, C = model.head_size, H = model.heads, K = model.key_value_heads;
  const int64_t group_rows_wanted = std::max<int64_t>(2 * compute.threads, 4) * compute.row_block;
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
  const int64_t block_size = compute.row_block;
  at::Tensor query_norm, key_norm;
  if (model.query_key_norm) {
    query_norm = float_weight(model.names.query_norm, "query norm");
    key_norm = float_weight(model.names.key_norm, "key norm");
  }
  const auto window = model.layer[static_cast<size_t>(layer)].sliding_window;

  for (size_t s0 = 0; s0 < sequences.size();) {
    // A group: whole sequences, enough rows to keep the threads busy.
    size_t s1 = s0;
    while (s1 < sequences.size() && (s1 == s0 || first_row[s1 + 1] - first_row[s0] <= group_rows_wanted)) ++s1;
    const int64_t first = first_row[s0], rows = first_row[s1] - first, blocks = blocks_of(rows, block_size);
    at::Tensor x = normed.get(blocks * block_size, D, product_type());
    at::Tensor q = query.get(blocks * block_size, H * C, product_type()), k = key.get(blocks * block_size, K * C, product_type());
    at::Tensor v = value.get(blocks * block_size, K * C, product_type());
    at::Tensor y = attended.get(blocks * block_size, H * C, product_type());
    const RotaryTable positions = rotary_rows(s0, s1, model.rotary_size);

    kernels.for_each_task(blocks, [&](int64_t b, int) {
      const int64_t begin = b * block_size, n = std::min(block_size, rows - begin);
      at::Tensor xb = x.narrow(0, begin, block_size);
      kernels.rms_norm(hidden.narrow(0, first + begin, n), norm, model.norm_epsilon, xb);
      const auto project = [&](const at::Tensor& w, const HeadFinish& finish, at::Tensor& out) {
        at::Tensor block = out.narrow(0, begin, block_size);
        block_product(xb, w, block);
        if (finish.bias.defined() || finish.cos.defined()) kernels.finish_heads(block, n, finish);
      };
      const at::Tensor cos = positions.cos.narrow(0, begin, block_size), sin = positions.sin.narrow(0, begin, block_size);
      project(wq, {H, bq, query_norm, model.norm_epsilon, cos, sin}, q);
      project(wk, {K, bk, key_norm, model.norm_epsilon, cos, sin}, k);
      project(wv, {K, bv}, v);
    });

    // A task is a sequence and one or all of its key/value heads, each at its sequence's own length.
    const int64_t per_key = H / K, heads_of_task = kernels.heads_of_task(K), tasks = K / heads_of_task;
    std::map<int64_t, at::Tensor> masks;
    if (window) {
      for (size_t s = s0; s < s1; ++s) {
        const int64_t T = first_row[s + 1] - first_row[s];
        if (T > *window && !masks.count(T)) masks[T] = window_mask(T, *window, product_type());
      }
    }
    kernels.for_each_task(static_cast<int64_t>(s1 - s0) * tasks, [&](int64_t task, int) {
      const size_t s = s0 + static_cast<size_t>(task / tasks);
      const int64_t head = task % tasks * heads_of_task, begin = first_row[s] - first, T = first_row[s + 1] - first_row[s];
      const auto heads = [&](const at::Tensor& buffer, int64_t of_key) {  // [heads of the task, of_key, T, C]
        return buffer.narrow(0, begin, T).view({T, K, of_key, C}).narrow(1, head, heads_of_task).permute({1, 2, 0, 3});
      };
      const at::Tensor qs = heads(q, per_key);
      const at::Tensor ks = heads(k, 1).expand({heads_of_task, per_key, T, C}), vs = heads(v, 1).expand({heads_of_task, per_key, T, C});
      const auto mask = masks.find(T);
      const bool masked = mask != masks.end();
      const at::Tensor out = at::_ops::scaled_dot_product_attention::call(
          qs, ks, vs, masked ? std::optional<at::Tensor>(mask->second) : std::nullopt, 0.0, !masked, std::nullopt, false);
      heads(y, per_key).copy_(out);
    });

    add_projected(y, wo, bo, first, rows);
    s0 = s1;
  }
  const auto N = static_cast<double>(tokens());
  figures.operations += 2 * N * static_cast<double>(D * C * (2 * H + 2 * K)) + 4 * attended_pairs() * static_cast<double>(H * C);
}

}  // namespace hcsmoe
