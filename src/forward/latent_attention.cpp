// Multi-head latent attention, in its form for whole sequences: keys and values of all heads are made from the compressed rows.

#include <ATen/ops/empty.h>
#include <ATen/ops/scaled_dot_product_attention_ops.h>

#include <algorithm>
#include <cstring>

#include "forward/row_kernels.h"
#include "forward/state.h"

namespace hcsmoe {
namespace {

/// Calls visit(float row) for the first rows of a block and takes over what it writes there. Rows are read and written in the block's type.
template <class Visit>
void for_each_row(const at::Tensor& block, int64_t rows, std::vector<float>& scratch, const Visit& visit) {
  const int64_t width = block.size(1);
  scratch.resize(static_cast<size_t>(width));
  for (int64_t r = 0; r < rows; ++r) {
    if (block.scalar_type() == at::kFloat) {
      visit(r, data<float>(block) + r * width);
      continue;
    }
    uint16_t* const stored = data<uint16_t>(block) + r * width;
    to_float(stored, width, scratch.data());
    visit(r, scratch.data());
    to_bfloat16(scratch.data(), width, stored);
  }
}

/// [T, from.size(1)] into the first columns of a [T, width] buffer; the others are 0.
at::Tensor widened(const at::Tensor& from, int64_t width, Buffer& buffer) {
  const int64_t T = from.size(0), own = from.size(1);
  at::Tensor result = buffer.get(T, width, from.scalar_type());
  result.narrow(1, 0, own).copy_(from);
  if (own < width) result.narrow(1, own, width - own).zero_();
  return result;
}

/// Norms of compressed rows have an epsilon of their own, which no config.json names.
constexpr double latent_norm_epsilon = 1e-6;

}  // namespace

void LayerSweep::State::latent_attention() {
  const LatentAttention& latent = *model.latent;
  const int64_t D = model.hidden_size, H = model.heads, C = latent.key_size(), P = latent.plain, R = latent.rotary, V = latent.value;
  const int64_t low = latent.key_value_rank, group_rows_wanted = std::max<int64_t>(2 * compute.threads, 4) * row_block;
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
  const auto add = [](const at::Tensor& to_add, float* row, int64_t width) {
    for (int64_t c = 0; to_add.defined() && c < width; ++c) row[c] += const_data<float>(to_add)[c];
  };

  for (size_t s0 = 0; s0 < sequences.size();) {
    // A group: whole sequences, enough rows to keep the threads busy.
    size_t s1 = s0;
    while (s1 < sequences.size() && (s1 == s0 || first_row[s1 + 1] - first_row[s0] <= group_rows_wanted)) ++s1;
    const int64_t first = first_row[s0], rows = first_row[s1] - first, blocks = blocks_of(rows, row_block);
    at::Tensor x = normed.get(blocks * row_block, D, compute.dtype);
    at::Tensor q = query.get(blocks * row_block, H * C, compute.dtype);         // heads of plain, then rotary channels
    at::Tensor kv = value.get(blocks * row_block, H * (P + V), compute.dtype);  // heads of plain keys, then values
    at::Tensor shared_key = key.get(blocks * row_block, R, compute.dtype);      // rotary channels of all heads' keys
    at::Tensor y = attended.get(blocks * row_block, H * V, compute.dtype);
    std::vector<std::pair<const RotaryTable*, int64_t>> place(static_cast<size_t>(rows));
    for (size_t s = s0; s < s1; ++s) {
      const int64_t T = first_row[s + 1] - first_row[s];
      if (!rotary.count(T)) rotary[T] = rotary_table(model.rope, R, T);
      for (int64_t t = 0; t < T; ++t) place[static_cast<size_t>(first_row[s] - first + t)] = {&rotary[T], t};
    }

    for_each_task(blocks, [&](int64_t b, int thread) {
      const auto i = static_cast<size_t>(thread);
      const int64_t begin = b * row_block, n = std::min(row_block, rows - begin);
      at::Tensor xb = x.narrow(0, begin, row_block);
      norm_rows(first + begin, n, norm, xb, data<float>(thread_float[i].get(1, D, at::kFloat)));
      std::vector<float> scratch;
      const auto rotate_row = [&](int64_t r, float* row, int64_t heads, int64_t head_size) {
        const auto& [table, position] = place[static_cast<size_t>(begin + r)];
        const int64_t at = position * (R / 2);
        rotate(row, heads, head_size, R, model.rope.interleaved, const_data<float>(table->cos) + at, const_data<float>(table->sin) + at);
      };

      at::Tensor from = xb;
      if (compressed_queries) {
        from = thread_gate[i].get(row_block, latent.query_rank, compute.dtype);
        block_product(xb, query_down, from);
        for_each_row(from, row_block, scratch, [&](int64_t, float* row) {
          add(query_down_bias, row, latent.query_rank);
          rms_norm(row, const_data<float>(query_down_norm), latent_norm_epsilon, latent.query_rank, row);
        });
      }
      at::Tensor qb = q.narrow(0, begin, row_block);
      block_product(from, query_up, qb);
      for_each_row(qb, n, scratch, [&](int64_t r, float* row) { rotate_row(r, row + P, H, C); });

      at::Tensor down = thread_up[i].get(row_block, low + R, compute.dtype), rank = thread_out[i].get(row_block, low, compute.dtype);
      block_product(xb, key_value_down, down);
      for_each_row(down, row_block, scratch, [&](int64_t r, float* row) {
        add(key_value_down_bias, row, low + R);
        rms_norm(row, const_data<float>(key_value_norm), latent_norm_epsilon, low, row);
        if (r < n) rotate_row(r, row + low, 1, R);
      });
      rank.copy_(down.narrow(1, 0, low));
      shared_key.narrow(0, begin, row_block).copy_(down.narrow(1, low, R));
      at::Tensor kvb = kv.narrow(0, begin, row_block);
      block_product(rank, key_value_up, kvb);
    });

    // One task a sequence and head, each at its sequence's own length. Keys and values of one width, so that no [T, T] scores are kept.
    const int64_t width = std::max(C, V);
    for_each_task(static_cast<int64_t>(s1 - s0) * H, [&](int64_t task, int thread) {
      const auto i = static_cast<size_t>(thread);
      const size_t s = s0 + static_cast<size_t>(task / H);
      const int64_t head = task % H, begin = first_row[s] - first, T = first_row[s + 1] - first_row[s];
      const auto columns = [&](const at::Tensor& buffer, int64_t from, int64_t n) { return buffer.narrow(0, begin, T).narrow(1, from, n); };
      const auto alone = [&](const at::Tensor& rows_of_head) { return rows_of_head.unsqueeze(0).unsqueeze(0); };  // [1, 1, T, width]
      at::Tensor keys = thread_gate[i].get(T, width, compute.dtype);
      keys.narrow(1, 0, P).copy_(columns(kv, head * (P + V), P));
      keys.narrow(1, P, R).copy_(columns(shared_key, 0, R));
      if (C < width) keys.narrow(1, C, width - C).zero_();
      const at::Tensor queries = widened(columns(q, head * C, C), width, thread_up[i]);
      const at::Tensor values = widened(columns(kv, head * (P + V) + P, V), width, thread_out[i]);
      const at::Tensor out = at::_ops::scaled_dot_product_attention::call(alone(queries), alone(keys), alone(values), std::nullopt, 0.0,
                                                                          true, latent.scale, false);
      columns(y, head * V, V).copy_(out.squeeze(0).squeeze(0).narrow(1, 0, V));
    });

    for_each_task(blocks, [&](int64_t b, int thread) {
      const int64_t begin = b * row_block, n = std::min(row_block, rows - begin);
      if (n < row_block) y.narrow(0, begin + n, row_block - n).zero_();
      at::Tensor out = thread_out[static_cast<size_t>(thread)].get(row_block, D, compute.dtype);
      block_product(y.narrow(0, begin, row_block), output, out);
      for (int64_t r = 0; r < n; ++r) {
        float* residual = data<float>(hidden) + (first + begin + r) * D;
        add(output_bias, residual, D);
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
  const int64_t of_queries = compressed_queries ? latent.query_rank * (D + H * C) : D * H * C;
  const int64_t of_keys = D * (low + R) + low * H * (P + V), of_output = D * H * V;
  figures.operations += 2 * static_cast<double>(tokens()) * static_cast<double>(of_queries + of_keys + of_output) +
                        2 * attended_pairs * static_cast<double>(H * (C + V));
}

}  // namespace hcsmoe
