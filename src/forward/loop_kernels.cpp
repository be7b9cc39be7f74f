// Kernels of the CPU: loops over rows in host memory, on this rank's threads.

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>

#include "forward/kernels.h"
#include "forward/products.h"
#include "forward/rotary.h"
#include "forward/routing.h"
#include "forward/row_kernels.h"
#include "hcsmoe/error.h"
#include "statistics/accumulator.h"

namespace hcsmoe {
namespace {

bool is_half(const at::Tensor& tensor) { return tensor.scalar_type() == at::kBFloat16; }

/// One row of this thread's own.
float* scratch(int64_t width) {
  thread_local std::vector<float> row;
  if (row.size() < static_cast<size_t>(width)) row.resize(static_cast<size_t>(width));
  return row.data();
}

/// out += scale * y[r]; returns |y[r]|^2.
double add_row(const at::Tensor& y, int64_t r, float scale, float* out) {
  const int64_t width = y.size(1);
  if (is_half(y)) return add_scaled(const_data<uint16_t>(y) + r * width, scale, width, out);
  return add_scaled(const_data<float>(y) + r * width, scale, width, out);
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

  void add_to(const RouterSums& sums) const {
    sums_in(sums.probability).add(probability);
    sums_in(sums.logit).add(logit);
    FixedPointSums of_gram = sums_in(sums.gram);
    for (size_t e = 0; e < E; ++e) {
      for (size_t f = 0; f < E; ++f) of_gram.add_kernel_units(e * E + f, gram[std::min(e, f) * E + std::max(e, f)]);
    }
  }

  size_t E;
  std::vector<int64_t> buffer, gram;
  FixedPointSums probability, logit;
};

/// Takes a chunk's highest logit; returns what earlier sums must be multiplied with.
double raise(const float* z, int64_t n, int64_t first, double& highest, double& sum, int64_t& top) {
  const float* const most = std::max_element(z, z + n);
  if (!(static_cast<double>(*most) > highest)) return 1;
  const double factor = std::exp(highest - static_cast<double>(*most));
  highest = static_cast<double>(*most);
  top = first + (most - z);
  sum *= factor;
  return factor;
}

class LoopKernels : public Kernels {
 public:
  void for_each_task(int64_t tasks, const std::function<void(int64_t, int)>& task) const override { hcsmoe::for_each_task(tasks, task); }
  int64_t heads_of_task(int64_t) const override { return 1; }

  void rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon, at::Tensor& out) const override {
    const int64_t n = x.size(0), D = x.size(1);
    const auto *rows = const_data<float>(x), *w = const_data<float>(weight);
    for (int64_t r = 0; r < n; ++r) {
      if (is_half(out)) {
        float* const row = scratch(D);
        hcsmoe::rms_norm(rows + r * D, w, epsilon, D, row);
        to_bfloat16(row, D, data<uint16_t>(out) + r * D);
      } else {
        hcsmoe::rms_norm(rows + r * D, w, epsilon, D, data<float>(out) + r * D);
      }
    }
    if (n < out.size(0)) out.narrow(0, n, out.size(0) - n).zero_();
  }

  void finish_heads(at::Tensor& rows, int64_t n, const HeadFinish& finish) const override {
    const int64_t width = rows.size(1), head_size = width / finish.heads;
    const auto pointer = [](const at::Tensor& t) { return t.defined() ? const_data<float>(t) : nullptr; };
    const float *const bias = pointer(finish.bias), *const norm = pointer(finish.norm);
    const float *const cos = pointer(finish.cos), *const sin = pointer(finish.sin);
    const int64_t normed = norm ? finish.norm.size(0) : 0, half = cos ? finish.cos.size(1) : 0;
    for (int64_t r = 0; r < n; ++r) {
      float* row = is_half(rows) ? scratch(width) : data<float>(rows) + r * width;
      if (is_half(rows)) to_float(const_data<uint16_t>(rows) + r * width, width, row);
      if (bias) {
        for (int64_t c = 0; c < width; ++c) row[c] += bias[c];
      }
      for (float* head = row; norm && head < row + width; head += head_size) {
        hcsmoe::rms_norm(head, norm, finish.norm_epsilon, normed, head);
      }
      if (cos) {
        rotate(row + finish.rotate_from, finish.heads, head_size, 2 * half, finish.interleaved, cos + r * half, sin + r * half);
      }
      if (is_half(rows)) to_bfloat16(row, width, data<uint16_t>(rows) + r * width);
    }
  }

  void add_rows(const at::Tensor& y, const at::Tensor& bias, const at::Tensor& scale, at::Tensor& out) const override {
    const int64_t width = y.size(1);
    const float* const added = bias.defined() ? const_data<float>(bias) : nullptr;
    const float* const scales = scale.defined() ? const_data<float>(scale) : nullptr;
    for (int64_t r = 0; r < y.size(0); ++r) {
      float* const row = data<float>(out) + r * width;
      if (added) {
        for (int64_t c = 0; c < width; ++c) row[c] += added[c];
      }
      add_row(y, r, scales ? scales[r] : 1.0f, row);
    }
  }

  void convert(const at::Tensor& in, at::Tensor& out) const override {
    if (in.scalar_type() == at::kFloat && is_half(out)) {
      to_bfloat16(const_data<float>(in), in.numel(), data<uint16_t>(out));
    } else {
      out.copy_(in);
    }
  }

  void gated_units(at::Tensor& gate, const at::Tensor& up) const override {
    if (is_half(gate)) {
      hcsmoe::gated_units(data<uint16_t>(gate), const_data<uint16_t>(up), gate.size(0), gate.size(1));
    } else {
      hcsmoe::gated_units(data<float>(gate), const_data<float>(up), gate.size(0), gate.size(1));
    }
  }

  void gated_units_summed(at::Tensor& gate, const at::Tensor& up, int64_t n, at::Tensor sums, at::Tensor bad) const override {
    const int64_t F = gate.size(1);
    thread_local std::vector<int64_t> of_block;
    of_block.assign(static_cast<size_t>(F), 0);
    const bool good = is_half(gate) ? hcsmoe::gated_units_summed(data<uint16_t>(gate), const_data<uint16_t>(up), n, F, of_block.data())
                                    : hcsmoe::gated_units_summed(data<float>(gate), const_data<float>(up), n, F, of_block.data());
    FixedPointSums all = sums_in(sums);
    const std::lock_guard lock(mutex_);
    for (size_t c = 0; c < of_block.size(); ++c) all.add_kernel_units(c, of_block[c]);
    if (!good) ++*data<int64_t>(bad);
  }

  void sigmoid_gates(const at::Tensor& x, const at::Tensor& gate, at::Tensor out) const override {
    const int64_t D = x.size(1);
    const float* const w = const_data<float>(gate);
    for (int64_t r = 0; r < x.size(0); ++r) {
      const float* const row = const_data<float>(x) + r * D;
      double s = 0;
      for (int64_t c = 0; c < D; ++c) s += static_cast<double>(row[c]) * static_cast<double>(w[c]);
      data<float>(out)[r] = static_cast<float>(1 / (1 + std::exp(-s)));
    }
  }

  void route(const at::Tensor& logits, int64_t n, const RoutingRule& rule, at::Tensor chosen, at::Tensor weights,
             const RouterSums* sums) const override {
    const int64_t E = logits.size(1), k = rule.top_k;
    RoutedToken token;
    BlockSums of_block(sums ? static_cast<size_t>(E) : 0);
    for (int64_t r = 0; r < n; ++r) {
      const float* const z = const_data<float>(logits) + r * E;
      route_token({z, static_cast<size_t>(E)}, rule, token);
      for (int64_t j = 0; j < k; ++j) {
        data<int64_t>(chosen)[r * k + j] = token.chosen[static_cast<size_t>(j)].first;
        data<float>(weights)[r * k + j] = token.chosen[static_cast<size_t>(j)].second;
      }
      if (sums) of_block.add(token, z);
    }
    if (!sums) return;
    const std::lock_guard lock(mutex_);
    of_block.add_to(*sums);
  }

  RoutedRows by_expert(const at::Tensor& chosen, const at::Tensor& weights, const std::vector<int64_t>& expert_of_row, int64_t experts,
                       int64_t row_block) const override {
    const int64_t N = chosen.size(0), k = chosen.size(1);
    RoutedRows routed;
    routed.row_blocks = blocks_of(N, row_block);
    const auto* const of_token = const_data<int64_t>(chosen);
    const auto expert_at = [&](int64_t at) {
      return expert_of_row.empty() ? of_token[at] : expert_of_row[static_cast<size_t>(of_token[at])];
    };
    // Whether the token's choice j leads where an earlier one led.
    const auto again = [&](int64_t row, int64_t j) {
      for (int64_t i = 0; i < j; ++i) {
        if (expert_at(row * k + i) == expert_at(row * k + j)) return true;
      }
      return false;
    };
    const bool alias = !expert_of_row.empty();
    std::vector<int64_t> next(static_cast<size_t>(experts * routed.row_blocks) + 1);
    for (int64_t row = 0; row < N; ++row) {
      for (int64_t j = 0; j < k; ++j) {
        if (alias && again(row, j)) continue;
        ++next[static_cast<size_t>(expert_at(row * k + j) * routed.row_blocks + row / row_block) + 1];
      }
    }
    for (size_t i = 1; i < next.size(); ++i) next[i] += next[i - 1];
    routed.first = next;
    const int64_t M = next.back();
    routed.rows = at::empty({M}, at::kLong);
    routed.experts = at::empty({M}, at::kLong);
    routed.weights = at::empty({M}, at::kFloat);
    auto* const rows = data<int64_t>(routed.rows);
    auto* const of_expert = data<int64_t>(routed.experts);
    auto* const weight = data<float>(routed.weights);
    for (int64_t row = 0; row < N; ++row) {
      for (int64_t j = 0; j < k; ++j) {
        const int64_t expert = expert_at(row * k + j);
        int64_t& end = next[static_cast<size_t>(expert * routed.row_blocks + row / row_block)];
        if (alias && again(row, j)) {
          weight[end - 1] += const_data<float>(weights)[row * k + j];
          continue;
        }
        rows[end] = row;
        of_expert[end] = expert;
        weight[end++] = const_data<float>(weights)[row * k + j];
      }
    }
    return routed;
  }

  void gather_rows(const at::Tensor& source, const at::Tensor& rows, int64_t first, at::Tensor out) const override {
    const auto bytes = static_cast<size_t>(source.size(1)) * source.element_size();
    const auto* const from = const_data<char>(source);
    const auto* const row = const_data<int64_t>(rows);
    auto* const to = data<char>(out);
    for (int64_t i = 0; i < rows.size(0); ++i) {
      std::memcpy(to + static_cast<size_t>(i) * bytes, from + static_cast<size_t>(row[i] - first) * bytes, bytes);
    }
  }

  void add_routed(const at::Tensor& y, const at::Tensor& rows, const at::Tensor& weights, at::Tensor& out,
                  at::Tensor norms) const override {
    const int64_t D = y.size(1);
    const auto* const row = const_data<int64_t>(rows);
    const auto* const weight = const_data<float>(weights);
    for (int64_t i = 0; i < rows.size(0); ++i) {
      data<double>(norms)[i] = std::sqrt(add_row(y, i, weight[i], data<float>(out) + row[i] * D));
    }
  }

  void add_by_expert(const at::Tensor& values, const RoutedRows& routed, bool weighted, at::Tensor& sums) const override {
    FixedPointSums all = sums_in(sums);
    const auto* const value = const_data<double>(values);
    const auto* const expert = const_data<int64_t>(routed.experts);
    const auto* const weight = const_data<float>(routed.weights);
    for (int64_t i = 0; i < values.size(0); ++i) {
      all.add(static_cast<size_t>(expert[i]), weighted ? value[i] * static_cast<double>(weight[i]) : value[i]);
    }
  }

  void token_grams(const at::Tensor& y, at::Tensor out) const override {
    const int64_t E = y.size(0), pairs = out.size(1);
    for_each_task(y.size(1), [&](int64_t t, int) {
      const at::Tensor of_token = y.select(1, t).to(at::kDouble).contiguous();  // [E, D]
      const at::Tensor gram = of_token.mm(of_token.t());
      float* next = data<float>(out) + t * pairs;
      for (int64_t e = 0; e < E; ++e) {
        for (int64_t f = e; f < E; ++f) *next++ = static_cast<float>(const_data<double>(gram)[e * E + f]);
      }
    });
  }

  void likelihoods(const at::Tensor& z, int64_t first, LikelihoodRows& rows, const at::Tensor* other, LikelihoodRows* of_other,
                   at::Tensor* cross) const override {
    const int64_t n = z.size(1);
    for (int64_t r = 0; r < rows.highest.size(0); ++r) {
      const float* const y = const_data<float>(z) + r * n;
      double highest = data<double>(rows.highest)[r], sum = data<double>(rows.sum)[r];
      raise(y, n, first, highest, sum, data<int64_t>(rows.top)[r]);
      for (int64_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(y[i]) - highest);
      data<double>(rows.highest)[r] = highest;
      data<double>(rows.sum)[r] = sum;
      if (!other) continue;
      const float* const x = const_data<float>(*other) + r * n;
      highest = data<double>(of_other->highest)[r];
      sum = data<double>(of_other->sum)[r];
      double crossed = data<double>(*cross)[r];
      crossed *= raise(x, n, first, highest, sum, data<int64_t>(of_other->top)[r]);
      for (int64_t i = 0; i < n; ++i) {
        const double p = std::exp(static_cast<double>(x[i]) - highest);
        sum += p;
        crossed += p * (static_cast<double>(x[i]) - static_cast<double>(y[i]));
      }
      data<double>(of_other->highest)[r] = highest;
      data<double>(of_other->sum)[r] = sum;
      data<double>(*cross)[r] = crossed;
    }
  }

 private:
  mutable std::mutex mutex_;  // of sums that all threads add to
};

}  // namespace

const Kernels& loop_kernels() {
  static const LoopKernels kernels;
  return kernels;
}

}  // namespace hcsmoe
