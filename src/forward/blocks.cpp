// The feed-forward blocks of a layer: dense, shared, and routed experts.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "forward/row_kernels.h"
#include "forward/state.h"
#include "hcsmoe/error.h"
#include "statistics/accumulator.h"

namespace hcsmoe {
namespace {

void gate_in_place(at::Tensor& gate, const at::Tensor& up, int64_t rows) {
  if (gate.scalar_type() == at::kBFloat16) {
    gated_units(data<uint16_t>(gate), const_data<uint16_t>(up), rows, gate.size(1));
  } else {
    gated_units(data<float>(gate), const_data<float>(up), rows, gate.size(1));
  }
}

bool gate_in_place_summed(at::Tensor& gate, const at::Tensor& up, int64_t rows, int64_t* sums) {
  if (gate.scalar_type() == at::kBFloat16) {
    return gated_units_summed(data<uint16_t>(gate), const_data<uint16_t>(up), rows, gate.size(1), sums);
  }
  return gated_units_summed(data<float>(gate), const_data<float>(up), rows, gate.size(1), sums);
}

/// output[row] += factor * y[r]; returns |y[r]|^2.
double add_row(const at::Tensor& y, int64_t r, float factor, float* output) {
  const int64_t width = y.size(1);
  if (y.scalar_type() == at::kBFloat16) return add_scaled(const_data<uint16_t>(y) + r * width, factor, width, output);
  return add_scaled(const_data<float>(y) + r * width, factor, width, output);
}

/// What the tokens of one block add to the router's statistics. The Gram matrix is summed over its upper half.
struct BlockSums {
  explicit BlockSums(size_t experts)
      : E(experts),
        buffer(2 * FixedPointSums::buffer_size(E)),
        gram(E * E),
        probability(std::span(buffer).first(buffer.size() / 2)),
        logit(std::span(buffer).last(buffer.size() / 2)) {}

  void add(const RoutedToken& token, const float* logits) {
    for (size_t e = 0; e < E; ++e) {
      probability.add(e, token.probabilities[e]);
      logit.add(e, static_cast<double>(logits[e]));
    }
    if (!outer_product_summed(logits, static_cast<int64_t>(E), gram.data())) {
      throw Error("router logits are too large: the checkpoint's weights overflow, or are damaged");
    }
  }

  void add_to(StatisticsAccumulator& statistics) const {
    statistics.router_probability_sum.add(probability);
    statistics.router_logit_sum.add(logit);
    for (size_t e = 0; e < E; ++e) {
      for (size_t f = 0; f < E; ++f) statistics.router_logit_gram.add_kernel_units(e * E + f, gram[std::min(e, f) * E + std::max(e, f)]);
    }
  }

  size_t E;
  std::vector<int64_t> buffer, gram;
  FixedPointSums probability, logit;
};

}  // namespace

void LayerSweep::State::feed_forward(const at::Tensor& input, const at::Tensor& gate, const at::Tensor& up, const at::Tensor& down,
                                     const std::vector<float>& scale, at::Tensor& output) {
  const int64_t N = tokens(), D = model.hidden_size, F = gate.size(0);
  for_each_task(blocks_of(N, row_block), [&](int64_t b, int thread) {
    const auto i = static_cast<size_t>(thread);
    const int64_t begin = b * row_block, n = std::min(row_block, N - begin);
    const at::Tensor x = input.narrow(0, begin, row_block);
    at::Tensor g = thread_gate[i].get(row_block, F, compute.dtype), u = thread_up[i].get(row_block, F, compute.dtype);
    at::Tensor y = thread_out[i].get(row_block, D, compute.dtype);
    block_product(x, gate, g);
    block_product(x, up, u);
    gate_in_place(g, u, row_block);
    block_product(g, down, y);
    for (int64_t r = 0; r < n; ++r) {
      const int64_t row = begin + r;
      add_row(y, r, scale.empty() ? 1.0f : scale[static_cast<size_t>(row)], data<float>(output) + row * D);
    }
  });
  figures.operations += 6.0 * static_cast<double>(N) * static_cast<double>(D) * static_cast<double>(F);
}

void LayerSweep::State::dense_block() {
  const int64_t N = tokens(), D = model.hidden_size;
  const at::Tensor norm = float_weight(model.names.attention_norm, "norm");
  at::Tensor x = block_input_buffer.get(padded(N, row_block), D, compute.dtype);
  for_each_task(blocks_of(N, row_block), [&](int64_t b, int thread) {
    const int64_t begin = b * row_block;
    at::Tensor xb = x.narrow(0, begin, row_block);
    norm_rows(begin, std::min(row_block, N - begin), norm, xb,
              data<float>(thread_float[static_cast<size_t>(thread)].get(1, D, at::kFloat)));
  });
  const TensorNames& names = model.names;
  feed_forward(x, weight(names.dense_gate, "gate"), weight(names.dense_up, "up"), weight(names.dense_down, "down"), {}, hidden);
}

void LayerSweep::State::sparse_input() {
  const int64_t N = tokens(), D = model.hidden_size;
  const at::Tensor norm = float_weight(model.names.attention_norm, "norm");
  block_rows = block_rows_buffer.get(padded(N, row_block), D, at::kFloat);
  block_input = half() ? block_input_buffer.get(padded(N, row_block), D, compute.dtype) : block_rows;
  for_each_task(blocks_of(N, row_block), [&](int64_t b, int) {
    const int64_t begin = b * row_block;
    at::Tensor rows = block_rows.narrow(0, begin, row_block);
    norm_rows(begin, std::min(row_block, N - begin), norm, rows, nullptr);
    if (!half()) return;
    at::Tensor rounded = block_input.narrow(0, begin, row_block);
    to_bfloat16(const_data<float>(rows), row_block * D, data<uint16_t>(rounded));
  });
}

void LayerSweep::State::shared_expert() {
  if (model.shared_intermediate == 0) return;
  const int64_t N = tokens(), D = model.hidden_size;
  std::vector<float> scale;  // [N]: sigmoid gate
  if (model.shared_expert_gate) {
    const at::Tensor gate = float_weight(model.names.shared_expert_gate, "shared expert gate");  // [1, D]
    scale.resize(static_cast<size_t>(N));
    for_each_task(blocks_of(N, row_block), [&](int64_t b, int) {
      for (int64_t row = b * row_block; row < std::min(N, (b + 1) * row_block); ++row) {
        double s = 0;
        const float* x = const_data<float>(block_rows) + row * D;
        for (int64_t c = 0; c < D; ++c) s += static_cast<double>(x[c]) * static_cast<double>(const_data<float>(gate)[c]);
        scale[static_cast<size_t>(row)] = static_cast<float>(1 / (1 + std::exp(-s)));
      }
    });
  }
  const TensorNames& names = model.names;
  feed_forward(block_input, weight(names.shared_gate, "gate"), weight(names.shared_up, "up"), weight(names.shared_down, "down"), scale,
               hidden);
}

RoutingRule block_routing(const RoutingRule& original, int64_t experts, const SparseBlock& block) {
  RoutingRule rule = original;
  rule.correction.clear();
  if (block.router.size(0) != experts) rule.groups = rule.top_groups = 1;
  if (!block.correction_bias.defined()) return rule;
  const at::Tensor bias = block.correction_bias.to(at::kFloat).contiguous();
  rule.correction.assign(const_data<float>(bias), const_data<float>(bias) + bias.numel());
  return rule;
}

Routing LayerSweep::State::route(StatisticsAccumulator* statistics, const SparseBlock* instead) {
  const at::Tensor router = instead ? instead->router.to(at::kFloat).contiguous() : float_weight(model.names.router, "router");  // [R, D]
  const int64_t N = tokens(), D = model.hidden_size, E = router.size(0), k = model.routing.top_k;
  const RoutingRule rule = instead ? block_routing(model.routing, model.experts, *instead) : layer_routing(checkpoint, model, layer);
  std::vector<float> weight_of(static_cast<size_t>(N * k));
  std::vector<int32_t> expert_of(static_cast<size_t>(N * k));
  std::mutex statistics_mutex;

  for_each_task(blocks_of(N, row_block), [&](int64_t b, int thread) {
    const int64_t begin = b * row_block, n = std::min(row_block, N - begin);
    // The router works on the float32 rows, whatever the type of the experts' products.
    at::Tensor z = thread_logits[static_cast<size_t>(thread)].get(row_block, E, at::kFloat);
    block_product(block_rows.narrow(0, begin, row_block), router, z);
    RoutedToken token;
    BlockSums sums(statistics ? static_cast<size_t>(E) : 0);
    for (int64_t r = 0; r < n; ++r) {
      const int64_t row = begin + r;
      const float* zr = const_data<float>(z) + r * E;
      route_token({zr, static_cast<size_t>(E)}, rule, token);
      for (int64_t j = 0; j < k; ++j) {
        expert_of[static_cast<size_t>(row * k + j)] = token.chosen[static_cast<size_t>(j)].first;
        weight_of[static_cast<size_t>(row * k + j)] = token.chosen[static_cast<size_t>(j)].second;
      }
      if (statistics) sums.add(token, zr);
    }
    if (statistics) {
      const std::lock_guard lock(statistics_mutex);
      sums.add_to(*statistics);
    }
  });
  figures.operations += 2.0 * static_cast<double>(N) * static_cast<double>(D) * static_cast<double>(E);

  const bool alias = instead && !instead->expert_of_row.empty();
  Routing routing;
  routing.of_expert.resize(instead ? instead->experts.size() : static_cast<size_t>(E));
  for (int64_t row = 0; row < N; ++row) {
    for (int64_t j = 0; j < k; ++j) {
      const auto at = static_cast<size_t>(row * k + j), chosen = static_cast<size_t>(expert_of[at]);
      auto& entries = routing.of_expert[alias ? static_cast<size_t>(instead->expert_of_row[chosen]) : chosen];
      if (alias && !entries.empty() && entries.back().row == row) {
        entries.back().weight += weight_of[at];
      } else {
        entries.push_back({static_cast<int32_t>(row), weight_of[at]});
      }
    }
  }
  if (!statistics) return routing;
  statistics->tokens[0] += N;
  for (size_t e = 0; e < routing.of_expert.size(); ++e) {
    statistics->routed_count[e] += static_cast<int64_t>(routing.of_expert[e].size());
    for (const auto& entry : routing.of_expert[e]) statistics->routed_weight_sum.add(e, static_cast<double>(entry.weight));
  }
  return routing;
}

void LayerSweep::State::routed_experts(StatisticsAccumulator* statistics, const SparseBlock* instead) {
  const int64_t N = tokens(), D = model.hidden_size, F = model.expert_intermediate;
  const Routing routing = route(statistics, instead);
  const at::Tensor x = block_input;
  at::Tensor output = block_output = block_output_buffer.get(N, D, at::kFloat, true);
  const bool on_all = statistics && statistics->intermediate > 0;
  const int64_t all_blocks = on_all ? blocks_of(N, row_block) : 0;
  const auto threads = static_cast<size_t>(compute.threads);
  std::vector<std::vector<int64_t>> thread_sums(threads, std::vector<int64_t>(on_all ? static_cast<size_t>(F) : 0));
  std::vector<double> norms;
  std::mutex sums_mutex;
  at::Tensor units_of_routed = routed_units.get(padded(routing.largest(), routed_row_block), F, compute.dtype);
  const auto unit_bytes = static_cast<size_t>(F) * units_of_routed.element_size();
  auto* const routed_bytes = static_cast<char*>(units_of_routed.mutable_data_ptr());

  for (int64_t e = 0; e < static_cast<int64_t>(routing.of_expert.size()); ++e) {
    const auto& entries = routing.of_expert[static_cast<size_t>(e)];
    const auto routed = static_cast<int64_t>(entries.size());
    const int64_t routed_blocks = blocks_of(routed, routed_row_block);
    if (!on_all && routed == 0) continue;
    const auto expert_weight = [&](ExpertPart part, at::Tensor ExpertWeights::*given, const char* slot) {
      return instead ? weights.convert(instead->experts[static_cast<size_t>(e)].*given, slot)
                     : weights.get(expert_tensor_name(model, layer, e, part), slot);
    };
    const at::Tensor gate = expert_weight(ExpertPart::gate, &ExpertWeights::gate, "gate");  // [F, D]
    const at::Tensor up = expert_weight(ExpertPart::up, &ExpertWeights::up, "up");          // [F, D]
    const at::Tensor down = expert_weight(ExpertPart::down, &ExpertWeights::down, "down");  // [D, F]

    // All tokens: h = act(gate x) * (up x), summed; the routed tokens' h is kept for the down product.
    std::atomic<bool> finite{true};
    for_each_task(all_blocks, [&](int64_t b, int thread) {
      const auto i = static_cast<size_t>(thread);
      const int64_t begin = b * row_block, n = std::min(row_block, N - begin);
      const at::Tensor xb = x.narrow(0, begin, row_block);
      at::Tensor g = thread_gate[i].get(row_block, F, compute.dtype), u = thread_up[i].get(row_block, F, compute.dtype);
      block_product(xb, gate, g);
      block_product(xb, up, u);
      std::vector<int64_t>& sums = thread_sums[i];
      std::fill(sums.begin(), sums.end(), 0);
      if (!gate_in_place_summed(g, u, n, sums.data())) finite = false;
      const auto by_row = [](const Routing::Entry& entry, int64_t row) { return entry.row < row; };
      const auto from = std::lower_bound(entries.begin(), entries.end(), begin, by_row);
      const auto to = std::lower_bound(from, entries.end(), begin + n, by_row);
      for (auto entry = from; entry != to; ++entry) {
        std::memcpy(routed_bytes + static_cast<size_t>(entry - entries.begin()) * unit_bytes,
                    static_cast<const char*>(g.const_data_ptr()) + static_cast<size_t>(entry->row - begin) * unit_bytes, unit_bytes);
      }
      const std::lock_guard lock(sums_mutex);
      for (int64_t c = 0; c < F; ++c) {
        statistics->unit_sum.add_kernel_units(static_cast<size_t>(e * F + c), sums[static_cast<size_t>(c)]);
      }
    });
    if (!finite) {
      throw Error(
          "layer " + std::to_string(layer) + ", expert " + std::to_string(e) +
          ": an intermediate value is not finite or exceeds 2^21; the checkpoint's weights are damaged, or need float32 (device.dtype)");
    }
    // Without unit sums only the routed tokens' rows are computed.
    if (!on_all) {
      for_each_task(routed_blocks, [&](int64_t b, int thread) {
        const auto i = static_cast<size_t>(thread);
        const int64_t begin = b * routed_row_block, n = std::min(routed_row_block, routed - begin);
        at::Tensor xb = thread_out[i].get(routed_row_block, D, compute.dtype);
        const auto row_bytes = static_cast<size_t>(D) * xb.element_size();
        for (int64_t r = 0; r < n; ++r) {
          std::memcpy(
              static_cast<char*>(xb.mutable_data_ptr()) + static_cast<size_t>(r) * row_bytes,
              static_cast<const char*>(x.const_data_ptr()) + static_cast<size_t>(entries[static_cast<size_t>(begin + r)].row) * row_bytes,
              row_bytes);
        }
        if (n < routed_row_block) xb.narrow(0, n, routed_row_block - n).zero_();
        at::Tensor g = units_of_routed.narrow(0, begin, routed_row_block), u = thread_up[i].get(routed_row_block, F, compute.dtype);
        block_product(xb, gate, g);
        block_product(xb, up, u);
        gate_in_place(g, u, routed_row_block);
      });
    } else if (routed_blocks > 0) {
      units_of_routed.narrow(0, routed, routed_blocks * routed_row_block - routed).zero_();
    }

    // The routed tokens: y = down h, weighted and added. A token stands once in an expert's list, so rows do not collide.
    norms.assign(static_cast<size_t>(routed), 0);
    for_each_task(routed_blocks, [&](int64_t b, int thread) {
      const int64_t begin = b * routed_row_block, n = std::min(routed_row_block, routed - begin);
      at::Tensor y = thread_out[static_cast<size_t>(thread)].get(routed_row_block, D, compute.dtype);
      block_product(units_of_routed.narrow(0, begin, routed_row_block), down, y);
      for (int64_t r = 0; r < n; ++r) {
        const auto& entry = entries[static_cast<size_t>(begin + r)];
        norms[static_cast<size_t>(begin + r)] = std::sqrt(add_row(y, r, entry.weight, data<float>(output) + entry.row * D));
      }
    });
    if (statistics) {
      const auto i = static_cast<size_t>(e);
      for (size_t r = 0; r < norms.size(); ++r) {
        statistics->routed_output_norm_sum.add(i, norms[r]);
        statistics->weighted_output_norm_sum.add(i, norms[r] * static_cast<double>(entries[r].weight));
      }
    }
    const auto all = static_cast<double>(on_all ? N : routed), DF = static_cast<double>(D * F);
    figures.operations += 4 * all * DF + 2 * static_cast<double>(routed) * DF;
  }

  for_each_task(blocks_of(N, row_block), [&](int64_t b, int) {
    const int64_t begin = b * row_block, n = std::min(row_block, N - begin);
    for (int64_t r = begin; r < begin + n; ++r) add_scaled(const_data<float>(output) + r * D, 1.0f, D, data<float>(hidden) + r * D);
  });
}

}  // namespace hcsmoe
