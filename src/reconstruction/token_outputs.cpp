#include "reconstruction/token_outputs.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "forward/row_kernels.h"
#include "reconstruction/row_sums.h"
#include "reconstruction/token_sums.h"
#include "reconstruction/units.h"

namespace hcsmoe {
namespace {

/// Adam (arXiv 1412.6980) on all tokens, the step size falling along half a cosine.
constexpr int adam_steps = 60;
constexpr int adam_check = 20;          // steps between looks at the held-out tokens
constexpr double adam_step = 1.0 / 20;  // first step size, in standard deviations of the rows
constexpr double first_temperature = 0.5;

/// The gates of one token and what the block's error says of them.
struct TokenGates {
  explicit TokenGates(int64_t experts)
      : K(static_cast<size_t>(experts)), probability(K), chooser(K), member(K), gate(K), derivative(K), order(K) {}

  /// The routing rule with its top-k as a soft step of width `temperature` in what chooses experts, half way between the k-th and the next;
  /// exact where it is 0 or all experts are chosen. Biased sigmoid scores have a quarter of the width, the sigmoid's largest slope.
  void set(const float* logits, const RoutingRule& rule, double temperature) {
    const auto k = static_cast<size_t>(rule.top_k);
    width = sigmoid(rule) ? temperature / 4 : temperature;
    if (sigmoid(rule)) {
      for (size_t i = 0; i < K; ++i) probability[i] = 1 / (1 + std::exp(-static_cast<double>(logits[i])));
      chooser = probability;
      for (size_t i = 0; i < rule.correction.size(); ++i) chooser[i] += static_cast<double>(rule.correction[i]);
    } else {
      const auto highest = static_cast<double>(*std::max_element(logits, logits + K));
      double sum = 0;
      for (size_t i = 0; i < K; ++i) sum += probability[i] = std::exp(static_cast<double>(logits[i]) - highest);
      for (double& p : probability) p /= sum;
      std::copy(logits, logits + K, chooser.begin());
    }
    for (size_t i = 0; i < K; ++i) order[i] = i;
    const auto above = [&](size_t a, size_t b) { return chooser[a] > chooser[b] || (chooser[a] == chooser[b] && a < b); };
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(std::min(k + 1, K)), order.end(), above);
    soft = temperature > 0 && k < K;
    if (soft) {
      last = order[k - 1];
      next = order[k];
      const double threshold = (chooser[last] + chooser[next]) / 2;
      for (size_t i = 0; i < K; ++i) member[i] = 1 / (1 + std::exp(-(chooser[i] - threshold) / width));
    } else {
      std::fill(member.begin(), member.end(), 0.0);
      for (size_t i = 0; i < std::min(k, K); ++i) member[order[i]] = 1;
    }
    total = sigmoid(rule) ? 1e-20 : 0;
    for (size_t i = 0; i < K; ++i) total += gate[i] = probability[i] * member[i];
    const double factor = rule.renormalise ? rule.scale / total : rule.scale;
    for (double& g : gate) g *= factor;
  }

  /// g^T G g - 2 g^T b, and derivative = 2 (G g - b).
  double error(const float* gram, const float* dot) {
    double value = 0;
    for (size_t i = 0; i < K; ++i) {
      double row = 0;
      for (size_t j = 0; j < K; ++j) {
        if (gate[j] != 0) row += static_cast<double>(gram[i * K + j]) * gate[j];
      }
      value += gate[i] * (row - 2 * static_cast<double>(dot[i]));
      derivative[i] = 2 * (row - static_cast<double>(dot[i]));
    }
    return value;
  }

  /// The derivative by the logits, times `factor`.
  void slope(const RoutingRule& rule, double factor, float* out) const {
    double mean = 0, step = 0;
    for (size_t i = 0; i < K; ++i) mean += gate[i] * derivative[i];
    const double share = rule.renormalise ? mean / rule.scale : mean;  // what the normalisation takes back
    const auto chooser_slope = [&](size_t i) { return sigmoid(rule) ? probability[i] * (1 - probability[i]) : 1.0; };
    for (size_t i = 0; i < K; ++i) {
      const double by_log = gate[i] * (derivative[i] - (rule.renormalise ? share : 0));
      const double edge = soft ? by_log * (1 - member[i]) / width : 0;
      step += edge;
      const double direct = sigmoid(rule)      ? by_log * (1 - probability[i])
                            : rule.renormalise ? by_log
                                               : gate[i] * derivative[i] - probability[i] * mean;
      out[i] = static_cast<float>(factor * (direct + edge * chooser_slope(i)));
    }
    if (!soft) return;
    for (const size_t i : {last, next}) out[i] -= static_cast<float>(factor * step / 2 * chooser_slope(i));
  }

  static bool sigmoid(const RoutingRule& rule) { return rule.score == RoutingRule::Score::sigmoid; }

  size_t K;
  std::vector<double> probability, chooser, member, gate, derivative;  // chooser: what the top-k compares
  std::vector<size_t> order;
  size_t last = 0, next = 0;
  double total = 0, width = 0;
  bool soft = false;
};

TokenGates& gates_of_thread(int64_t experts) {
  thread_local TokenGates gates(0);
  if (gates.K != static_cast<size_t>(experts)) gates = TokenGates(experts);
  return gates;
}

}  // namespace

TokenOutputs token_outputs(const BlockTokens& tokens, int64_t every, const std::vector<ExpertWeights>& experts,
                           const std::vector<at::Tensor>& down, const Compute& compute) {
  const Span span(compute.trace, Activity::reconstructing, "outputs of sampled tokens");
  TokenOutputs result;
  std::vector<int32_t> held;
  int64_t row = 0;
  for (const int64_t end : tokens.groups.end) {
    for (; row < end; ++row) {
      if ((tokens.groups.first_token + row) % every != 0) continue;
      (tokens.groups.held_out[static_cast<size_t>(row)] != 0 ? held : result.rows).push_back(static_cast<int32_t>(row));
    }
    result.group_end.push_back(static_cast<int64_t>(result.rows.size()));
  }
  result.training = static_cast<int64_t>(result.rows.size());
  result.rows.insert(result.rows.end(), held.begin(), held.end());

  const auto n = static_cast<int64_t>(result.rows.size()), K = static_cast<int64_t>(experts.size()), D = tokens.input.size(1);
  Buffer input_buffer;
  result.input = gathered(tokens.input, result.rows, input_buffer);
  result.gram = at::empty({n, K, K}, at::kFloat);
  result.dot = at::empty({n, K}, at::kFloat);
  result.square = at::empty({n}, at::kDouble);

  // Every expert on a chunk of the tokens; rows do not depend on how the tokens are cut into chunks.
  const int64_t chunk = output_chunk(K, D);
  TokenGroups all;  // all of a chunk's rows count as training rows
  all.held_out.assign(tokens.groups.held_out.size(), 0);
  all.end = {tokens.input.size(0)};
  UnitsOfExperts units_of(tokens.input, all, compute);
  Buffer outputs_buffer, product;
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t here = std::min(chunk, n - begin);
    at::Tensor outputs = outputs_buffer.get(here, K * D, at::kFloat);
    std::vector<Routing::Entry> entries;
    for (int64_t i = 0; i < here; ++i) entries.push_back({result.rows[static_cast<size_t>(begin + i)], 1.0f});
    for (int64_t k = 0; k < K; ++k) {
      const at::Tensor y = row_product(units_of.of(experts[static_cast<size_t>(k)], entries).values, down[static_cast<size_t>(k)], product);
      for_each_task(blocks_of(here, routed_row_block), [&](int64_t b, int) {
        for (int64_t i = b * routed_row_block; i < std::min(here, (b + 1) * routed_row_block); ++i) {
          std::memcpy(data<float>(outputs) + (i * K + k) * D, const_data<float>(y) + i * D, static_cast<size_t>(D) * sizeof(float));
        }
      });
    }
    for_each_task(here, [&](int64_t i, int) {
      const at::Tensor o = outputs[i].view({K, D});
      at::Tensor gram = result.gram[begin + i];
      block_product(o, o, gram);
      const float* y = const_data<float>(tokens.target) + result.rows[static_cast<size_t>(begin + i)] * D;
      data<double>(result.square)[begin + i] = squared(y, D);
      for (int64_t k = 0; k < K; ++k) {
        data<float>(result.dot)[(begin + i) * K + k] = static_cast<float>(dot(const_data<float>(o) + k * D, y, D));
      }
    });
  }
  return result;
}

at::Tensor rows_by_output_error(const TokenOutputs& tokens, const RoutingRule& rule, const at::Tensor& start, const Ranks& ranks) {
  const Span span(ranks.trace(), Activity::reconstructing, "router: output error");
  const int64_t K = start.size(0), D = start.size(1), n = static_cast<int64_t>(tokens.rows.size());
  // Errors are divided by the mean |y|^2, so that what is summed is of order 1.
  std::vector<int64_t> buffer(FixedPointSums::buffer_size(1) + 2);
  double largest_square = 0;
  for (int64_t i = 0; i < n; ++i) largest_square = std::max(largest_square, const_data<double>(tokens.square)[i]);
  int exponent = 0;
  std::frexp(largest_square, &exponent);
  exponent = static_cast<int>(ranks.all_reduce_max(largest_square > 0 ? exponent + 2000 : 0)) - 2000;
  if (exponent == -2000) return start.to(at::kDouble);  // nothing to fit
  FixedPointSums square(std::span<int64_t>(buffer).first(FixedPointSums::buffer_size(1)));
  for (int64_t i = 0; i < n; ++i) square.add(0, std::ldexp(const_data<double>(tokens.square)[i], -exponent));
  buffer[buffer.size() - 2] = tokens.training;
  buffer.back() = n - tokens.training;
  ranks.all_reduce_sum(buffer);
  const auto training = static_cast<double>(buffer[buffer.size() - 2]), held = static_cast<double>(buffer.back());
  if (training == 0) return start.to(at::kDouble);
  const double unit = std::ldexp(square.value(0) / (training + held), exponent);

  const auto held_out_error = [&](const at::Tensor& rows) {
    Buffer logits_buffer;
    const at::Tensor logits = row_product(tokens.input, rows, logits_buffer);
    return sum_over_rows(n - tokens.training, ranks, [&](int64_t row) {
      const int64_t i = tokens.training + row;
      TokenGates& gates = gates_of_thread(K);
      gates.set(const_data<float>(logits) + i * K, rule, 0);
      const double error = gates.error(const_data<float>(tokens.gram) + i * K * K, const_data<float>(tokens.dot) + i * K);
      return (error + const_data<double>(tokens.square)[i]) / unit;
    });
  };

  at::Tensor rows = start.to(at::kDouble).contiguous().clone(), best = rows.clone();
  double best_error = held_out_error(start.to(at::kFloat));
  double mean = 0, spread = 0;
  for (int64_t i = 0; i < K * D; ++i) mean += const_data<double>(rows)[i] / static_cast<double>(K * D);
  for (int64_t i = 0; i < K * D; ++i) spread += std::pow(const_data<double>(rows)[i] - mean, 2) / static_cast<double>(K * D);
  const double first_step =
      adam_step * std::sqrt(spread * static_cast<double>(K * D) / static_cast<double>(std::max<int64_t>(K * D - 1, 1)));
  std::vector<double> gradient(static_cast<size_t>(K * D)), first(gradient.size()), second(gradient.size());
  for (int step = 0; step < adam_steps; ++step) {
    const double done = static_cast<double>(step) / adam_steps;
    const double temperature = first_temperature * (1 - done) + 1e-3;
    std::fill(gradient.begin(), gradient.end(), 0.0);
    sum_over_tokens(tokens.input, tokens.group_end, rows.to(at::kFloat), training, ranks, gradient.data(),
                    [&](int64_t i, const float* z, float* slope) {
                      TokenGates& gates = gates_of_thread(K);
                      gates.set(z, rule, temperature);
                      const double error = gates.error(const_data<float>(tokens.gram) + i * K * K, const_data<float>(tokens.dot) + i * K);
                      gates.slope(rule, 1 / unit, slope);
                      return error / unit;
                    });
    const double size = first_step * (0.5 * (1 + std::cos(M_PI * done)) + 0.02);
    for (size_t i = 0; i < gradient.size(); ++i) {
      first[i] = 0.9 * first[i] + 0.1 * gradient[i];
      second[i] = 0.999 * second[i] + 0.001 * gradient[i] * gradient[i];
      const double m = first[i] / (1 - std::pow(0.9, step + 1)), v = second[i] / (1 - std::pow(0.999, step + 1));
      data<double>(rows)[i] -= size * m / (std::sqrt(v) + 1e-8);
    }
    if ((step + 1) % adam_check != 0 && step + 1 != adam_steps) continue;
    if (const double error = held_out_error(rows.to(at::kFloat)); error < best_error) {
      best_error = error;
      best = rows.clone();
    }
  }
  return best;
}

}  // namespace hcsmoe
