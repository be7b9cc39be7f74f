// The feed-forward blocks of a layer: dense, shared, and routed experts.

#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "forward/state.h"
#include "hcsmoe/error.h"
#include "statistics/accumulator.h"

namespace hcsmoe {

void LayerSweep::State::feed_forward(const at::Tensor& input, const at::Tensor& gate, const at::Tensor& up, const at::Tensor& down,
                                     const at::Tensor& scale, at::Tensor& output) {
  const int64_t N = tokens(), D = model.hidden_size, F = gate.size(0), rows = compute.row_block;
  for_each_block([&](int64_t begin, int64_t n, int thread) {
    const auto i = static_cast<size_t>(thread);
    const at::Tensor x = input.narrow(0, begin, rows);
    at::Tensor g = thread_gate[i].get(rows, F, product_type()), u = thread_up[i].get(rows, F, product_type());
    at::Tensor y = thread_out[i].get(rows, D, product_type());
    block_product(x, gate, g);
    block_product(x, up, u);
    kernels.gated_units(g, u);
    block_product(g, down, y);
    at::Tensor out = output.narrow(0, begin, n);
    kernels.add_rows(y.narrow(0, 0, n), {}, scale.defined() ? scale.narrow(0, begin, n) : scale, out);
  });
  figures.operations += 6.0 * static_cast<double>(N) * static_cast<double>(D) * static_cast<double>(F);
}

void LayerSweep::State::dense_block() {
  const at::Tensor norm = float_weight(model.names.attention_norm, "norm");
  at::Tensor x = block_input_buffer.get(padded(tokens(), compute.row_block), model.hidden_size, product_type());
  for_each_block([&](int64_t begin, int64_t n, int) {
    at::Tensor rows = x.narrow(0, begin, compute.row_block);
    kernels.rms_norm(hidden.narrow(0, begin, n), norm, model.norm_epsilon, rows);
  });
  const TensorNames& names = model.names;
  feed_forward(x, weight(names.dense_gate, "gate"), weight(names.dense_up, "up"), weight(names.dense_down, "down"), {}, hidden);
}

void LayerSweep::State::sparse_input() {
  const int64_t rows = padded(tokens(), compute.row_block), D = model.hidden_size;
  const at::Tensor norm = float_weight(model.names.attention_norm, "norm");
  block_rows = block_rows_buffer.get(rows, D, compute.type(at::kFloat));
  block_input = half() ? block_input_buffer.get(rows, D, product_type()) : block_rows;
  for_each_block([&](int64_t begin, int64_t n, int) {
    at::Tensor normed_rows = block_rows.narrow(0, begin, compute.row_block);
    kernels.rms_norm(hidden.narrow(0, begin, n), norm, model.norm_epsilon, normed_rows);
    if (!half()) return;
    at::Tensor rounded = block_input.narrow(0, begin, compute.row_block);
    kernels.convert(normed_rows, rounded);
  });
}

void LayerSweep::State::shared_expert() {
  if (model.shared_intermediate == 0) return;
  at::Tensor scale;  // [N]: sigmoid gate
  if (model.shared_expert_gate) {
    const at::Tensor gate = float_weight(model.names.shared_expert_gate, "shared expert gate");  // [1, D]
    scale = shared_scale.get(1, padded(tokens(), compute.row_block), compute.type(at::kFloat))[0];
    for_each_block([&](int64_t begin, int64_t, int) {  // whole blocks: their last rows are zeros
      kernels.sigmoid_gates(block_rows.narrow(0, begin, compute.row_block), gate, scale.narrow(0, begin, compute.row_block));
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

RoutedRows LayerSweep::State::route(StatisticsAccumulator* statistics, const SparseBlock* instead) {
  // The router works on the float32 rows, whatever the type of the experts' products.
  const at::Tensor router =
      instead ? weights.convert_float(instead->router.contiguous(), "router") : float_weight(model.names.router, "router");  // [R, D]
  const int64_t N = tokens(), D = model.hidden_size, E = router.size(0), k = model.routing.top_k;
  const RoutingRule rule = instead ? block_routing(model.routing, model.experts, *instead) : layer_routing(checkpoint, model, layer);
  const at::Tensor chosen = chosen_experts.get(N, k, compute.type(at::kLong));
  const at::Tensor weight_of = chosen_weights.get(N, k, compute.type(at::kFloat));
  RouterSums sums;
  if (statistics) sums = {statistics->router_probability_sum, statistics->router_logit_sum, statistics->router_logit_gram};
  for_each_block([&](int64_t begin, int64_t n, int thread) {
    at::Tensor z = thread_logits[static_cast<size_t>(thread)].get(compute.row_block, E, compute.type(at::kFloat));
    block_product(block_rows.narrow(0, begin, compute.row_block), router, z);
    kernels.route(z, n, rule, chosen.narrow(0, begin, n), weight_of.narrow(0, begin, n), statistics ? &sums : nullptr);
  });
  figures.operations += 2.0 * static_cast<double>(N) * static_cast<double>(D) * static_cast<double>(E);

  const int64_t experts = instead ? static_cast<int64_t>(instead->experts.size()) : E;
  RoutedRows routed =
      kernels.by_expert(chosen, weight_of, instead ? instead->expert_of_row : std::vector<int64_t>{}, experts, compute.row_block);
  if (!statistics) return routed;
  statistics->tokens.add_(N);
  std::vector<int64_t> counts;
  for (int64_t e = 0; e < experts; ++e) counts.push_back(routed.of(e).size);
  statistics->routed_count.add_(at::tensor(at::ArrayRef<int64_t>(counts), at::kLong).to(compute.device));
  kernels.add_by_expert(routed.weights.to(at::kDouble), routed, false, statistics->routed_weight_sum);
  return routed;
}

void LayerSweep::State::routed_experts(StatisticsAccumulator* statistics, const SparseBlock* instead) {
  const int64_t N = tokens(), D = model.hidden_size, F = model.expert_intermediate;
  const int64_t block_size = compute.row_block, routed_size = compute.routed_row_block;
  const RoutedRows routing = route(statistics, instead);
  const at::Tensor x = block_input;
  at::Tensor output = block_output = block_output_buffer.get(N, D, compute.type(at::kFloat), true);
  const bool on_all = statistics && statistics->intermediate > 0;
  const int64_t experts = instead ? static_cast<int64_t>(instead->experts.size()) : model.experts;
  const at::Tensor units_of_routed = routed_units.get(padded(routing.largest(), routed_size), F, product_type());
  const at::Tensor norms = routed_norms.get(1, routing.rows.size(0), compute.type(at::kDouble))[0];
  const at::Tensor bad = at::zeros({experts}, compute.type(at::kLong));  // blocks whose units cannot be summed

  for (int64_t e = 0; e < experts; ++e) {
    const RoutedRows::Range range = routing.of(e);
    const int64_t routed_blocks = blocks_of(range.size, routed_size);
    if (!on_all && range.size == 0) continue;
    const auto expert_weight = [&](ExpertPart part, at::Tensor ExpertWeights::*given, const char* slot) {
      return instead ? weights.convert(instead->experts[static_cast<size_t>(e)].*given, slot)
                     : weights.get(expert_tensor_name(model, layer, e, part), slot);
    };
    const at::Tensor gate = expert_weight(ExpertPart::gate, &ExpertWeights::gate, "gate");  // [F, D]
    const at::Tensor up = expert_weight(ExpertPart::up, &ExpertWeights::up, "up");          // [F, D]
    const at::Tensor down = expert_weight(ExpertPart::down, &ExpertWeights::down, "down");  // [D, F]
    const at::Tensor rows = routing.rows.narrow(0, range.begin, range.size);

    if (on_all) {
      // All tokens: h = act(gate x) * (up x), summed; the routed tokens' h is kept for the down product.
      const at::Tensor unit_sum = statistics->unit_sum.select(1, e), of_expert = bad.narrow(0, e, 1);
      for_each_block([&](int64_t begin, int64_t n, int thread) {
        const auto i = static_cast<size_t>(thread);
        const at::Tensor xb = x.narrow(0, begin, block_size);
        at::Tensor g = thread_gate[i].get(block_size, F, product_type()), u = thread_up[i].get(block_size, F, product_type());
        block_product(xb, gate, g);
        block_product(xb, up, u);
        kernels.gated_units_summed(g, u, n, unit_sum, of_expert);
        const RoutedRows::Range here = routing.of(e, begin / block_size);
        if (here.size == 0) return;
        kernels.gather_rows(g, routing.rows.narrow(0, here.begin, here.size), begin,
                            units_of_routed.narrow(0, here.begin - range.begin, here.size));
      });
      units_of_routed.narrow(0, range.size, routed_blocks * routed_size - range.size).zero_();
    } else {
      // Without unit sums only the routed tokens' rows are computed.
      kernels.for_each_task(routed_blocks, [&](int64_t b, int thread) {
        const auto i = static_cast<size_t>(thread);
        const int64_t begin = b * routed_size, n = std::min(routed_size, range.size - begin);
        at::Tensor xb = thread_out[i].get(routed_size, D, product_type());
        kernels.gather_rows(x, rows.narrow(0, begin, n), 0, xb);
        if (n < routed_size) xb.narrow(0, n, routed_size - n).zero_();
        at::Tensor g = units_of_routed.narrow(0, begin, routed_size), u = thread_up[i].get(routed_size, F, product_type());
        block_product(xb, gate, g);
        block_product(xb, up, u);
        kernels.gated_units(g, u);
      });
    }

    // The routed tokens: y = down h, weighted and added. A token stands once in an expert's list, so rows do not collide.
    kernels.for_each_task(routed_blocks, [&](int64_t b, int thread) {
      const int64_t begin = b * routed_size, n = std::min(routed_size, range.size - begin);
      at::Tensor y = thread_out[static_cast<size_t>(thread)].get(routed_size, D, product_type());
      block_product(units_of_routed.narrow(0, begin, routed_size), down, y);
      kernels.add_routed(y, rows.narrow(0, begin, n), routing.weights.narrow(0, range.begin + begin, n), output,
                         norms.narrow(0, range.begin + begin, n));
    });
    const auto all = static_cast<double>(on_all ? N : range.size), DF = static_cast<double>(D * F);
    figures.operations += 4 * all * DF + 2 * static_cast<double>(range.size) * DF;
  }

  if (on_all) {
    const at::Tensor found = bad.cpu();
    for (int64_t e = 0; e < experts; ++e) {
      if (const_data<int64_t>(found)[e] == 0) continue;
      throw Error(
          "layer " + std::to_string(layer) + ", expert " + std::to_string(e) +
          ": an intermediate value is not finite or exceeds 2^21; the checkpoint's weights are damaged, or need float32 (device.dtype)");
    }
  }
  if (statistics) {
    kernels.add_by_expert(norms, routing, false, statistics->routed_output_norm_sum);
    kernels.add_by_expert(norms, routing, true, statistics->weighted_output_norm_sum);
  }
  for_each_block([&](int64_t begin, int64_t n, int) {
    at::Tensor rows = hidden.narrow(0, begin, n);
    kernels.add_rows(output.narrow(0, begin, n), {}, {}, rows);
  });
}

}  // namespace hcsmoe
