// Kernels of devices: operations of libtorch on whole blocks. Every reduction of floating numbers runs along the rows of a block of one
// shape, or adds integers, or touches each element once; so results are the same bits wherever a row stands and however the sequences are
// dealt to ranks.

#include <ATen/ops/add.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/triu_indices.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "forward/kernels.h"
#include "forward/products.h"
#include "hcsmoe/error.h"
#include "statistics/fixed_point.h"

namespace hcsmoe {
namespace {

constexpr double largest_unit_value = 2097152.0;  // of gated units, and of products of logits: 2^21

at::TensorOptions of_type(const at::Tensor& like, at::ScalarType type) { return at::TensorOptions(type).device(like.device()); }

/// The rows as a block of R rows, zeros below.
at::Tensor whole_block(const at::Tensor& rows, int64_t R) {
  if (rows.size(0) == R) return rows;
  at::Tensor block = at::zeros({R, rows.size(1)}, rows.options());
  block.narrow(0, 0, rows.size(0)).copy_(rows);
  return block;
}

/// Values in fixed point (FixedPointSums::add): their whole parts and fractions, int64.
std::pair<at::Tensor, at::Tensor> fixed_point(const at::Tensor& values) {
  const at::Tensor below = values.floor();
  return {below.to(at::kLong), values.sub(below).mul_(static_cast<double>(int64_t{1} << fraction_bits)).round_().to(at::kLong)};
}

void add_rows_to(const at::Tensor& values, at::Tensor sums) {
  const auto [whole, fraction] = fixed_point(values);
  sums[0].add_(whole.sum(0));
  sums[1].add_(fraction.sum(0));
}

/// Adds whole numbers of units of 2^-bits to sums in fixed point.
void add_units(const at::Tensor& units, int bits, at::Tensor sums) {
  sums[0].add_(units.bitwise_right_shift(bits));
  sums[1].add_(units.bitwise_and((int64_t{1} << bits) - 1).bitwise_left_shift(fraction_bits - bits));
}

/// Adds sum z z^T of rows of logits, rounded to 2^-20, exactly: their 31 bits are cut in two, so that no product of matrices of such parts
/// has a sum of 2^53 or more.
void add_gram(const at::Tensor& logits, const at::Tensor& sums) {
  const at::Tensor units = logits.to(at::kDouble).mul_(std::ldexp(1.0, 20)).round_();
  const at::Tensor high = units.mul(std::ldexp(1.0, -15)).floor_(), low = units.sub(high, std::ldexp(1.0, 15));
  const at::Tensor mixed = high.t().mm(low);
  add_units(high.t().mm(high).to(at::kLong), 10, sums);
  add_units(mixed.add(mixed.t()).to(at::kLong), 25, sums);
  add_units(low.t().mm(low).to(at::kLong), 40, sums);
}

/// 1 / sqrt(mean(x^2) + epsilon) over the last dimension, which stays.
at::Tensor norm_scale(const at::Tensor& x, double epsilon) {
  return x.to(at::kDouble).square_().mean(at::IntArrayRef{-1}, true).add_(epsilon).sqrt_().reciprocal_().to(at::kFloat);
}

/// x [.., .., channels] with some channels replaced, from `first` on.
at::Tensor with_channels(const at::Tensor& x, int64_t first, const at::Tensor& channels) {
  const int64_t end = first + channels.size(2);
  if (first == 0 && end == x.size(2)) return channels;
  return at::cat({x.narrow(2, 0, first), channels, x.narrow(2, end, x.size(2) - end)}, 2);
}

/// The experts by descending choice, equal ones by ascending number, int64 [R, E]: by the logits, or by biased scores within the best
/// groups. (route_token, keep_best_groups)
at::Tensor by_preference(const at::Tensor& logits, const at::Tensor& scores, const RoutingRule& rule) {
  // A stable sort leaves equal values in the order of the experts.
  const auto sorted = [](const at::Tensor& values) { return std::get<1>(values.sort(true, 1, true)); };
  if (rule.correction.empty() && rule.groups == 1) return sorted(logits);
  const int64_t R = scores.size(0), E = scores.size(1), G = rule.groups;
  at::Tensor values = scores;
  if (!rule.correction.empty()) {
    const at::Tensor bias = at::tensor(at::ArrayRef<float>(rule.correction), at::kDouble);
    if (!bias.isfinite().all().item<bool>()) throw Error("a correction bias of a router is not finite: the checkpoint is damaged");
    values = scores.add(bias.to(scores.device()));
  }
  if (G > 1) {
    const at::Tensor best = std::get<0>(values.view({R, G, E / G}).sort(true, 2, true)).narrow(2, 0, std::min<int64_t>(2, E / G)).sum(2);
    const at::Tensor left_out = sorted(best).narrow(1, rule.top_groups, G - rule.top_groups);
    const at::Tensor outside = at::zeros({R, G}, of_type(scores, at::kBool)).scatter_(1, left_out, true);
    values = values.view({R, G, E / G}).masked_fill(outside.unsqueeze(2), -INFINITY).view({R, E});
  }
  return sorted(values);
}

class TensorKernels : public Kernels {
 public:
  void for_each_task(int64_t tasks, const std::function<void(int64_t, int)>& task) const override {
    for (int64_t i = 0; i < tasks; ++i) task(i, 0);
  }
  int64_t heads_of_task(int64_t key_value_heads) const override { return key_value_heads; }

  void rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon, at::Tensor& out) const override {
    const at::Tensor rows = whole_block(x, out.size(0));
    out.copy_(rows.mul(norm_scale(rows, epsilon)).mul_(weight));
  }

  void finish_heads(at::Tensor& rows, int64_t, const HeadFinish& finish) const override {
    const int64_t R = rows.size(0), H = finish.heads;
    at::Tensor x = rows.to(at::kFloat);
    if (finish.bias.defined()) x = x.add(finish.bias);
    x = x.view({R, H, -1});
    if (finish.norm.defined()) {
      const at::Tensor part = x.narrow(2, 0, finish.norm.size(0));
      x = with_channels(x, 0, part.mul(norm_scale(part, finish.norm_epsilon)).mul_(finish.norm));
    }
    if (finish.cos.defined()) {
      const int64_t half = finish.cos.size(1), pair = finish.interleaved ? 3 : 2;
      const at::Tensor part = x.narrow(2, finish.rotate_from, 2 * half).reshape({R, H, pair == 3 ? half : 2, pair == 3 ? 2 : half});
      const at::Tensor a = part.select(pair, 0), b = part.select(pair, 1), cos = finish.cos.unsqueeze(1), sin = finish.sin.unsqueeze(1);
      const at::Tensor rotated = at::stack({a.mul(cos).sub_(b.mul(sin)), b.mul(cos).add_(a.mul(sin))}, pair);
      x = with_channels(x, finish.rotate_from, rotated.reshape({R, H, 2 * half}));
    }
    rows.copy_(x.reshape(rows.sizes()));
  }

  void add_rows(const at::Tensor& y, const at::Tensor& bias, const at::Tensor& scale, at::Tensor& out) const override {
    if (bias.defined()) out.add_(bias);
    out.add_(scale.defined() ? y.to(at::kFloat).mul(scale.unsqueeze(1)) : y);
  }

  void convert(const at::Tensor& in, at::Tensor& out) const override { out.copy_(in); }

  void gated_units(at::Tensor& gate, const at::Tensor& up) const override { gate.copy_(units_of(gate, up)); }

  void gated_units_summed(at::Tensor& gate, const at::Tensor& up, int64_t n, at::Tensor sums, at::Tensor bad) const override {
    const at::Tensor h = units_of(gate, up), rows = h.narrow(0, 0, n);
    // h 2^30 + 1.5 2^52 holds h's units in the low bits of its mantissa. Integers of libtorch wrap, so the sum of what stands above them
    // can be taken away at the end.
    constexpr double magic = 6755399441055744.0;
    const at::Tensor bits = at::add(at::full({1}, magic, of_type(h, at::kDouble)), rows, 1073741824.0).view(at::kLong);
    const uint64_t above = std::bit_cast<uint64_t>(magic) * static_cast<uint64_t>(n);
    add_units(bits.sum(0).sub_(static_cast<int64_t>(above)), kernel_bits, sums);
    const auto [least, most] = rows.aminmax();
    bad.add_(most.maximum(least.neg()).lt(largest_unit_value).logical_not());
    gate.copy_(h);
  }

  void sigmoid_gates(const at::Tensor& x, const at::Tensor& gate, at::Tensor out) const override {
    const at::Tensor product = x.to(at::kDouble).mul_(gate).sum(1);
    out.copy_(product.neg_().exp_().add_(1).reciprocal_());
  }

  void route(const at::Tensor& logits, int64_t n, const RoutingRule& rule, at::Tensor chosen, at::Tensor weights,
             const RouterSums* sums) const override {
    const double largest = logits.abs().amax().item<double>();
    if (!std::isfinite(largest)) throw Error("a router logit is not finite: the checkpoint's weights overflow, or are damaged");
    const bool sigmoid = rule.score == RoutingRule::Score::sigmoid;
    const at::Tensor probability =
        sigmoid ? logits.to(at::kDouble).neg_().exp_().add_(1).reciprocal_() : logits.softmax(1, at::kDouble);  // [R, E]
    const at::Tensor best = by_preference(logits, probability, rule).narrow(1, 0, rule.top_k);
    at::Tensor weight = probability.gather(1, best);
    if (rule.renormalise) weight = weight.div(weight.sum(1, true).add_(sigmoid ? 1e-20 : 0));
    chosen.copy_(best.narrow(0, 0, n));
    weights.copy_(weight.narrow(0, 0, n).mul(rule.scale));
    if (!sums) return;
    if (!(largest * largest < largest_unit_value)) {
      throw Error("router logits are too large: the checkpoint's weights overflow, or are damaged");
    }
    const at::Tensor z = logits.narrow(0, 0, n);
    add_rows_to(probability.narrow(0, 0, n), sums->probability);
    add_rows_to(z.to(at::kDouble), sums->logit);
    add_gram(z, sums->gram);
  }

  RoutedRows by_expert(const at::Tensor& chosen, const at::Tensor& weights, const std::vector<int64_t>& expert_of_row, int64_t experts,
                       int64_t row_block) const override {
    const int64_t N = chosen.size(0), k = chosen.size(1);
    RoutedRows routed;
    routed.row_blocks = blocks_of(N, row_block);
    const int64_t rows = padded(N, row_block);
    at::Tensor expert = chosen;
    if (!expert_of_row.empty()) {
      const at::Tensor map = at::tensor(at::ArrayRef<int64_t>(expert_of_row), at::kLong).to(chosen.device());
      expert = map.index_select(0, chosen.reshape({-1})).view({N, k});
    }
    // One choice of each token at a time: a scatter then meets no element twice.
    at::Tensor dense = at::zeros({rows, experts}, of_type(chosen, at::kFloat));
    at::Tensor present = at::zeros({rows, experts}, of_type(chosen, at::kBool));
    at::Tensor of_tokens = dense.narrow(0, 0, N), there = present.narrow(0, 0, N);
    for (int64_t j = 0; j < k; ++j) {
      const at::Tensor at = expert.narrow(1, j, 1);
      of_tokens.scatter_(1, at, of_tokens.gather(1, at).add_(weights.narrow(1, j, 1)));
      there.scatter_(1, at, true);
    }
    const at::Tensor by_expert = present.t().contiguous();  // [experts, rows]
    const at::Tensor places = by_expert.nonzero();          // [M, 2], by expert, then row
    routed.experts = places.select(1, 0).contiguous();
    routed.rows = places.select(1, 1).contiguous();
    routed.weights = dense.t().contiguous().masked_select(by_expert);
    const at::Tensor counts = by_expert.view({experts * routed.row_blocks, row_block}).sum(1).cpu();
    routed.first = {0};
    for (int64_t i = 0; i < counts.size(0); ++i) routed.first.push_back(routed.first.back() + const_data<int64_t>(counts)[i]);
    return routed;
  }

  void gather_rows(const at::Tensor& source, const at::Tensor& rows, int64_t first, at::Tensor out) const override {
    at::Tensor to = out.narrow(0, 0, rows.size(0));
    at::index_select_out(to, source, 0, first == 0 ? rows : rows.sub(first));
  }

  void add_routed(const at::Tensor& y, const at::Tensor& rows, const at::Tensor& weights, at::Tensor& out,
                  at::Tensor norms) const override {
    const int64_t m = rows.size(0);
    norms.copy_(y.to(at::kDouble).square_().sum(1).narrow(0, 0, m).sqrt());
    out.index_add_(0, rows, y.narrow(0, 0, m).to(at::kFloat).mul(weights.unsqueeze(1)));
  }

  void add_by_expert(const at::Tensor& values, const RoutedRows& routed, bool weighted, at::Tensor& sums) const override {
    if (values.numel() == 0) return;
    const at::Tensor added = weighted ? values.mul(routed.weights) : values;
    const double largest = added.abs().amax().item<double>();
    if (!(largest < largest_addend)) throw Error("a statistic is not finite, or too large to be summed: " + std::to_string(largest));
    const auto [whole, fraction] = fixed_point(added);
    sums[0].index_add_(0, routed.experts, whole);
    sums[1].index_add_(0, routed.experts, fraction);
  }

  void token_grams(const at::Tensor& y, at::Tensor out) const override {
    constexpr int64_t together = 8;  // tokens: products in double of all experts' outputs
    const int64_t E = y.size(0), tokens = y.size(1);
    const at::Tensor pair = at::triu_indices(E, E, 0, of_type(y, at::kLong));
    const at::Tensor index = pair[0].mul(E).add_(pair[1]);
    for (int64_t t = 0; t < tokens; t += together) {
      const int64_t n = std::min(together, tokens - t);
      const at::Tensor of_tokens = y.narrow(1, t, n).transpose(0, 1).to(at::kDouble).contiguous();  // [n, E, D]
      const at::Tensor gram = of_tokens.bmm(of_tokens.transpose(1, 2)).view({n, E * E});
      out.narrow(0, t, n).copy_(gram.index_select(1, index).to(at::kFloat));
    }
  }

  void likelihoods(const at::Tensor& z, int64_t first, LikelihoodRows& rows, const at::Tensor* other, LikelihoodRows* of_other,
                   at::Tensor* cross) const override {
    const int64_t n = rows.highest.size(0);
    take(z, first, rows);
    if (!other) return;
    const at::Tensor p = take(*other, first, *of_other, cross), distance = other->to(at::kDouble).sub_(z);
    cross->add_(p.mul(distance).sum(1).narrow(0, 0, n));
  }

 private:
  static at::Tensor units_of(const at::Tensor& gate, const at::Tensor& up) { return at::silu(gate.to(at::kFloat)).mul_(up); }

  /// Adds a chunk's logits to the rows; returns exp(z - highest), [R, n], and rescales `also` with the sums.
  static at::Tensor take(const at::Tensor& z, int64_t first, LikelihoodRows& rows, at::Tensor* also = nullptr) {
    const int64_t n = rows.highest.size(0);
    const auto [most, place] = z.max(1);  // of equals the first
    const at::Tensor found = most.narrow(0, 0, n).to(at::kDouble), higher = found.gt(rows.highest);
    rows.top.copy_(at::where(higher, place.narrow(0, 0, n).add(first), rows.top));
    const at::Tensor highest = at::where(higher, found, rows.highest);
    const at::Tensor factor = rows.highest.sub(highest).exp_();
    rows.highest.copy_(highest);
    const at::Tensor p = z.to(at::kDouble).sub_(whole_block(highest.unsqueeze(1), z.size(0))).exp_();
    rows.sum.mul_(factor).add_(p.sum(1).narrow(0, 0, n));
    if (also) also->mul_(factor);
    return p;
  }
};

}  // namespace

const Kernels& tensor_kernels() {
  static const TensorKernels kernels;
  return kernels;
}

}  // namespace hcsmoe
