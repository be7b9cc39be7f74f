// Multi-head latent attention, in its form for whole sequences: keys and values of all heads are made from the compressed rows.

#include <ATen/core/Tensor.h>
#include <ATen/ops/scaled_dot_product_attention_ops.h>

#include <algorithm>

#include "forward/state.h"

namespace hcsmoe {
namespace {

/// Norms of compressed rows have an epsilon of their own, which no config.json names.
constexpr double latent_norm_epsilon = 1e-6;

}  // namespace

void LayerSweep::State::latent_attention() {
  const LatentAttention& latent = *model.latent;
  const int64_t D = model.hidden_size, H = model.heads, C = latent.key_size(), P = latent.plain, R = latent.rotary, V = latent.value;
  const int64_t low = latent.key_value_rank, block_size = compute.row_block;
  const int64_t group_rows_wanted = std::max<int64_t>(2 * compute.threads, 4) * block_size;
  const TensorNames& names = model.names;
  const auto bias = [&](bool there, const std::string& of, const char* slot) {
    return there ? float_weight(bias_of(of), slot) : at::Tensor();
  };
  const at::Tensor norm = float_weight(names.input_norm, "norm");
  const bool compressed_queries = latent.query_rank > 0;
  at::Tensor query_down, query_down_norm;
  if (compressed_queries) {
    query_down = weight(names.query_down, "query down");
    query_down_norm = float_weight(names.query_down_norm, "query norm");
  }
  const at::Tensor query_down_bias = bias(compressed_queries && model.query_key_value_bias, names.query_down, "query bias");
  const at::Tensor query_up = weight(names.query, "query");               // [H C, query rank or D]
  const at::Tensor key_value_down = weight(names.key_value_down, "key");  // [low + R, D]
  const at::Tensor key_value_norm = float_weight(names.key_value_down_norm, "key norm");
  const at::Tensor key_value_down_bias = bias(model.query_key_value_bias, names.key_value_down, "key bias");
  const at::Tensor key_value_up = weight(names.key_value_up, "value");           // [H (P + V), low]
  const at::Tensor output = weight(names.attention_output, "attention output");  // [D, H V]
  const at::Tensor output_bias = bias(model.attention_output_bias, names.attention_output, "attention output bias");

  for (size_t s0 = 0; s0 < sequences.size();) {
    // A group: whole sequences, enough rows to keep the threads busy.
    size_t s1 = s0;
    while (s1 < sequences.size() && (s1 == s0 || first_row[s1 + 1] - first_row[s0] <= group_rows_wanted)) ++s1;
    const int64_t first = first_row[s0], rows = first_row[s1] - first, blocks = blocks_of(rows, block_size);
    at::Tensor x = normed.get(blocks * block_size, D, product_type());
    at::Tensor q = query.get(blocks * block_size, H * C, product_type());         // heads of plain, then rotary channels
    at::Tensor kv = value.get(blocks * block_size, H * (P + V), product_type());  // heads of plain keys, then values
    at::Tensor shared_key = key.get(blocks * block_size, R, product_type());      // rotary channels of all heads' keys
    at::Tensor y = attended.get(blocks * block_size, H * V, product_type());
    const RotaryTable positions = rotary_rows(s0, s1, R);

    kernels.for_each_task(blocks, [&](int64_t b, int thread) {
      const auto i = static_cast<size_t>(thread);
      const int64_t begin = b * block_size, n = std::min(block_size, rows - begin);
      at::Tensor xb = x.narrow(0, begin, block_size);
      kernels.rms_norm(hidden.narrow(0, first + begin, n), norm, model.norm_epsilon, xb);
      const at::Tensor cos = positions.cos.narrow(0, begin, block_size), sin = positions.sin.narrow(0, begin, block_size);
      const bool interleaved = model.rope.interleaved;

      at::Tensor from = xb;
      if (compressed_queries) {
        from = thread_gate[i].get(block_size, latent.query_rank, product_type());
        block_product(xb, query_down, from);
        kernels.finish_heads(from, block_size, {1, query_down_bias, query_down_norm, latent_norm_epsilon});
      }
      at::Tensor qb = q.narrow(0, begin, block_size);
      block_product(from, query_up, qb);
      kernels.finish_heads(qb, n, {H, {}, {}, 0, cos, sin, P, interleaved});

      at::Tensor down = thread_up[i].get(block_size, low + R, product_type()), rank = thread_out[i].get(block_size, low, product_type());
      block_product(xb, key_value_down, down);
      kernels.finish_heads(down, block_size, {1, key_value_down_bias, key_value_norm, latent_norm_epsilon, cos, sin, low, interleaved});
      rank.copy_(down.narrow(1, 0, low));
      shared_key.narrow(0, begin, block_size).copy_(down.narrow(1, low, R));
      at::Tensor kvb = kv.narrow(0, begin, block_size);
      block_product(rank, key_value_up, kvb);
    });

    // A task is a sequence and one or all of its heads, each at its sequence's own length. Keys and values of one width, so that no [T, T]
    // scores are kept.
    const int64_t width = std::max(C, V), heads_of_task = kernels.heads_of_task(H), tasks = H / heads_of_task;
    kernels.for_each_task(static_cast<int64_t>(s1 - s0) * tasks, [&](int64_t task, int thread) {
      const auto i = static_cast<size_t>(thread);
      const size_t s = s0 + static_cast<size_t>(task / tasks);
      const int64_t head = task % tasks * heads_of_task, begin = first_row[s] - first, T = first_row[s + 1] - first_row[s];
      const auto channels = [&](const at::Tensor& buffer, int64_t from, int64_t n) {  // of the task's heads: [heads, T, n]
        return buffer.narrow(0, begin, T).view({T, H, -1}).narrow(1, head, heads_of_task).narrow(2, from, n).transpose(0, 1);
      };
      const auto in_width = [&](Buffer& buffer, const at::Tensor& some, const at::Tensor& more) {  // [heads, T, width], the rest 0
        const at::Tensor all = buffer.get(heads_of_task * T, width, product_type()).view({heads_of_task, T, width});
        const int64_t first_part = some.size(2), used = first_part + (more.defined() ? more.size(2) : 0);
        all.narrow(2, 0, first_part).copy_(some);
        if (more.defined()) all.narrow(2, first_part, used - first_part).copy_(more);
        if (used < width) all.narrow(2, used, width - used).zero_();
        return all.unsqueeze(0);
      };
      const at::Tensor shared = shared_key.narrow(0, begin, T).unsqueeze(0);
      const at::Tensor keys = in_width(thread_gate[i], channels(kv, 0, P), shared);
      const at::Tensor queries = in_width(thread_up[i], channels(q, 0, C), {});
      const at::Tensor values = in_width(thread_out[i], channels(kv, P, V), {});
      const at::Tensor out =
          at::_ops::scaled_dot_product_attention::call(queries, keys, values, std::nullopt, 0.0, true, latent.scale, false);
      channels(y, 0, V).copy_(out.squeeze(0).narrow(2, 0, V));
    });
    add_projected(y, output, output_bias, first, rows);
    s0 = s1;
  }
  const int64_t of_queries = compressed_queries ? latent.query_rank * (D + H * C) : D * H * C;
  const int64_t of_keys = D * (low + R) + low * H * (P + V), of_output = D * H * V;
  figures.operations += 2 * static_cast<double>(tokens()) * static_cast<double>(of_queries + of_keys + of_output) +
                        2 * attended_pairs() * static_cast<double>(H * (C + V));
}

}  // namespace hcsmoe
