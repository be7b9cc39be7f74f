// The kernels of devices against the loops of the CPU, on random and odd inputs. They run on the device of host_device.h.

#include "forward/kernels.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "forward/products.h"
#include "hcsmoe/error.h"
#include "host_device.h"
#include "statistics/accumulator.h"

namespace hcsmoe {
namespace {

const Kernels& loops = loop_kernels();
const Kernels& tensors = tensor_kernels();

at::Tensor normal(at::IntArrayRef shape, uint64_t seed, float scale = 1) {
  at::Tensor result = at::empty(shape, at::kFloat);
  std::mt19937_64 random(seed);
  std::normal_distribution<float> draw(0, scale);
  for (int64_t i = 0; i < result.numel(); ++i) data<float>(result)[i] = draw(random);
  return result;
}

at::Tensor copy(const at::Tensor& t) { return t.defined() ? t.clone() : t; }
at::Tensor there(const at::Tensor& t) { return t.defined() ? t.to(host_device) : t; }

/// The largest difference, as a share of the largest value.
double difference(const at::Tensor& found, const at::Tensor& expected) {
  EXPECT_EQ(found.sizes(), expected.sizes());
  if (found.numel() == 0) return 0;
  const at::Tensor a = found.cpu().to(at::kDouble), b = expected.to(at::kDouble);
  EXPECT_TRUE(a.isfinite().all().item<bool>());
  return a.sub(b).abs().max().item<double>() / std::max(b.abs().max().item<double>(), 1e-30);
}

at::Tensor values(const at::Tensor& sums) {
  const at::Tensor host = sums.cpu();
  const FixedPointSums fixed = sums_in(host);
  at::Tensor result = at::empty({static_cast<int64_t>(fixed.size())}, at::kDouble);
  for (size_t i = 0; i < fixed.size(); ++i) data<double>(result)[i] = fixed.value(i);
  return result;
}

/// Of results in the type of computation: the rounding of float32 operations, or one step of bfloat16.
double tolerance(at::ScalarType type) { return type == at::kFloat ? 2e-6 : 8e-3; }

class InBothTypes : public testing::TestWithParam<at::ScalarType> {};
INSTANTIATE_TEST_SUITE_P(, InBothTypes, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& test) { return test.param == at::kFloat ? "float32" : "bfloat16"; });

TEST(HostDevice, IsNotHostMemory) {
  const at::Tensor t = there(normal({2, 3}, 1));
  EXPECT_THROW(data<float>(t), Error);
  EXPECT_THROW(const_data<float>(t), Error);
  EXPECT_ANY_THROW(t.add(normal({2, 3}, 2)));
  EXPECT_ANY_THROW(t.mm(normal({3, 2}, 2)));
  EXPECT_EQ(difference(t.add(there(normal({2, 3}, 2))), normal({2, 3}, 1).add(normal({2, 3}, 2))), 0);
  EXPECT_NO_THROW(const_data<float>(t.cpu()));
}

TEST_P(InBothTypes, RmsNorm) {
  for (const int64_t D : {1, 37, 64, 513}) {
    for (const int64_t n : {0, 1, 31, 32}) {
      const at::Tensor x = normal({n, D}, 1, 5), w = normal({D}, 2);
      at::Tensor expected = at::full({32, D}, NAN, GetParam()), found = there(expected);
      loops.rms_norm(x, w, 1e-5, expected);
      tensors.rms_norm(there(x), there(w), 1e-5, found);
      EXPECT_LE(difference(found, expected), tolerance(GetParam())) << n << " rows of " << D;
      EXPECT_EQ(found.cpu().narrow(0, n, 32 - n).count_nonzero().item<int64_t>(), 0);
    }
  }
}

TEST_P(InBothTypes, FinishHeads) {
  struct Case {
    int64_t heads, head_size, normed, rotated, from;
    bool bias, interleaved;
  };
  for (const Case& c : {Case{4, 10, 0, 10, 0, true, false}, Case{1, 24, 0, 24, 0, false, true}, Case{3, 20, 20, 10, 0, true, false},
                        Case{1, 24, 18, 6, 18, true, true}, Case{5, 16, 0, 6, 10, false, true}, Case{2, 8, 8, 0, 0, true, false}}) {
    const int64_t R = 32, n = 27, width = c.heads * c.head_size;
    HeadFinish here{c.heads};
    if (c.bias) here.bias = normal({width}, 3);
    if (c.normed > 0) here.norm = normal({c.normed}, 4);
    here.norm_epsilon = 1e-6;
    if (c.rotated > 0) {
      const at::Tensor angle = normal({R, c.rotated / 2}, 5, 100);
      here.cos = angle.cos();
      here.sin = angle.sin();
    }
    here.rotate_from = c.from;
    here.interleaved = c.interleaved;
    HeadFinish device = here;
    device.bias = there(here.bias);
    device.norm = there(here.norm);
    device.cos = there(here.cos);
    device.sin = there(here.sin);
    const at::Tensor rows = normal({R, width}, 6).to(GetParam());
    at::Tensor expected = copy(rows), found = there(rows);
    loops.finish_heads(expected, n, here);
    tensors.finish_heads(found, n, device);
    EXPECT_GT(difference(expected, rows), 0.1);
    EXPECT_LE(difference(found.narrow(0, 0, n), expected.narrow(0, 0, n)), tolerance(GetParam())) << c.heads << " x " << c.head_size;
  }
}

TEST_P(InBothTypes, AddRows) {
  for (const int64_t D : {1, 37, 256}) {
    for (const bool bias : {false, true}) {
      for (const bool scale : {false, true}) {
        const at::Tensor y = normal({19, D}, 7).to(GetParam()), b = bias ? normal({D}, 8) : at::Tensor();
        const at::Tensor s = scale ? normal({19}, 9) : at::Tensor();
        at::Tensor expected = normal({19, D}, 10), found = there(expected);
        loops.add_rows(y, b, s, expected);
        tensors.add_rows(there(y), there(b), there(s), found);
        EXPECT_LE(difference(found, expected), 1e-6);
      }
    }
  }
}

TEST(TensorKernels, ConvertRoundsToNearestEven) {
  const at::Tensor x = normal({64, 33}, 11, 100);
  at::Tensor expected = at::empty({64, 33}, at::kBFloat16), found = there(expected);
  loops.convert(x, expected);
  tensors.convert(there(x), found);
  EXPECT_TRUE(found.cpu().equal(expected));
}

TEST_P(InBothTypes, GatedUnits) {
  for (const int64_t F : {1, 37, 352, 700}) {
    const at::Tensor gate = normal({64, F}, 12, 6).to(GetParam()), up = normal({64, F}, 13).to(GetParam());
    at::Tensor expected = copy(gate), found = there(gate);
    loops.gated_units(expected, up);
    tensors.gated_units(found, there(up));
    EXPECT_LE(difference(found, expected), tolerance(GetParam()));
    for (const int64_t n : {1, 50, 64}) {
      at::Tensor sums = at::zeros({2, F}, at::kLong), device_sums = there(sums), bad = at::zeros({1}, at::kLong), device_bad = there(bad);
      at::Tensor h = copy(gate), device_h = there(gate);
      loops.gated_units_summed(h, up, n, sums, bad);
      tensors.gated_units_summed(device_h, there(up), n, device_sums, device_bad);
      EXPECT_LE(difference(device_h.narrow(0, 0, n), h.narrow(0, 0, n)), tolerance(GetParam()));
      EXPECT_LE(difference(values(device_sums), values(sums)), 1e-6);
      EXPECT_EQ(bad.item<int64_t>(), 0);
      EXPECT_EQ(device_bad.item<int64_t>(), 0);
    }
  }
}

/// Where no exponential is in the way, the two must have the same integers: the quantisation of large and negative numbers, and its sums.
TEST(TensorKernels, UnitsAreSummedExactly) {
  const at::Tensor gate = at::full({1024, 5}, 100.0f), up = normal({1024, 5}, 14, 3000);  // 100 / (1 + exp(-100)) is 100
  at::Tensor sums = at::zeros({2, 5}, at::kLong), device_sums = there(sums), bad = at::zeros({1}, at::kLong), device_bad = there(bad);
  at::Tensor h = copy(gate), device_h = there(gate);
  for (int repeat = 0; repeat < 3; ++repeat) {
    h = copy(gate);
    device_h = there(gate);
    loops.gated_units_summed(h, up, 1024, sums, bad);
    tensors.gated_units_summed(device_h, there(up), 1024, device_sums, device_bad);
  }
  EXPECT_TRUE(device_h.cpu().equal(h));
  EXPECT_TRUE(values(device_sums).equal(values(sums)));
  EXPECT_GT(values(sums).abs().min().item<double>(), 1e4);
  EXPECT_EQ(device_bad.item<int64_t>(), 0);
}

TEST(TensorKernels, BadUnitsAreCounted) {
  for (const float wrong : {NAN, INFINITY, -INFINITY, 3e6f, -3e6f}) {
    at::Tensor gate = at::full({32, 4}, 50.0f), up = at::zeros({32, 4}, at::kFloat);
    data<float>(up)[7] = wrong;  // row 1
    at::Tensor sums = there(at::zeros({2, 4}, at::kLong)), bad = there(at::zeros({1}, at::kLong));
    at::Tensor h = there(gate);
    tensors.gated_units_summed(h, there(up), 1, sums, bad);
    EXPECT_EQ(bad.item<int64_t>(), 0) << "a row that is not in use";
    h = there(gate);
    tensors.gated_units_summed(h, there(up), 2, sums, bad);
    EXPECT_EQ(bad.item<int64_t>(), 1) << wrong;
  }
}

TEST(TensorKernels, SigmoidGates) {
  for (const int64_t D : {1, 36, 257}) {
    const at::Tensor x = normal({32, D}, 15, 3), gate = normal({1, D}, 16);
    const at::Tensor expected = at::empty({32}, at::kFloat), found = there(expected);
    loops.sigmoid_gates(x, gate, expected);
    tensors.sigmoid_gates(there(x), there(gate), found);
    EXPECT_LE(difference(found, expected), 1e-6);
  }
}

struct Routed {
  at::Tensor chosen, weights, probability, logit, gram;
};

Routed route(const Kernels& kernels, at::Device device, const at::Tensor& logits, int64_t n, const RoutingRule& rule) {
  const int64_t E = logits.size(1);
  const auto zeros = [&](at::IntArrayRef shape) { return at::zeros(shape, at::TensorOptions(at::kLong).device(device)); };
  const RouterSums sums{zeros({2, E}), zeros({2, E}), zeros({2, E, E})};
  const at::Tensor chosen = zeros({n, rule.top_k}), weights = at::zeros({n, rule.top_k}, at::TensorOptions(at::kFloat).device(device));
  kernels.route(logits.to(device), n, rule, chosen, weights, &sums);
  return {chosen.cpu(), weights.cpu(), values(sums.probability), values(sums.logit), values(sums.gram)};
}

void expect_same_routing(const at::Tensor& logits, int64_t n, const RoutingRule& rule) {
  const Routed expected = route(loops, at::kCPU, logits, n, rule), found = route(tensors, host_device, logits, n, rule);
  EXPECT_TRUE(found.chosen.equal(expected.chosen));
  EXPECT_LE(difference(found.weights, expected.weights), 1e-6);
  EXPECT_LE(difference(found.probability, expected.probability), 1e-9);
  EXPECT_LE(difference(found.logit, expected.logit), 1e-12);
  EXPECT_LE(difference(found.gram, expected.gram), 1e-5);
}

std::vector<RoutingRule> rules(int64_t E) {
  std::vector<RoutingRule> result;
  for (const bool renormalise : {false, true}) {
    for (const int64_t k : {int64_t{1}, std::min<int64_t>(E, 3), E}) {
      RoutingRule rule;
      rule.top_k = k;
      rule.renormalise = renormalise;
      rule.scale = 1.5;
      result.push_back(rule);
    }
  }
  return result;
}

TEST(TensorKernels, Route) {
  for (const int64_t E : {1, 7, 60, 128}) {
    for (const RoutingRule& rule : rules(E)) expect_same_routing(normal({64, E}, static_cast<uint64_t>(E), 4), 61, rule);
  }
}

TEST(TensorKernels, EqualLogitsGoToTheSmallerIndex) {
  const at::Tensor few = at::randint(0, 3, {64, 40}, at::kLong).to(at::kFloat);
  for (const RoutingRule& rule : rules(40)) expect_same_routing(few, 64, rule);
  expect_same_routing(at::zeros({64, 9}, at::kFloat), 64, rules(9)[1]);
}

TEST(TensorKernels, RouteBySigmoidsBiasesAndGroups) {
  for (RoutingRule rule : rules(12)) {
    rule.score = RoutingRule::Score::sigmoid;
    expect_same_routing(normal({64, 12}, 20, 3), 64, rule);
    rule.correction.resize(12);
    for (size_t e = 0; e < 12; ++e) rule.correction[e] = 0.05f * static_cast<float>(e % 5);
    expect_same_routing(normal({64, 12}, 21, 3), 64, rule);
    if (rule.top_k > 6) continue;
    rule.groups = 4;
    rule.top_groups = 2;
    expect_same_routing(normal({64, 12}, 22, 3), 64, rule);
    expect_same_routing(at::randint(0, 2, {64, 12}, at::kLong).to(at::kFloat), 64, rule);  // equal groups
    rule.correction.clear();
    expect_same_routing(at::randint(0, 2, {64, 12}, at::kLong).to(at::kFloat), 64, rule);
  }
}

TEST(TensorKernels, LogitsThatCannotBeRoutedAreAnError) {
  RoutingRule rule;
  rule.top_k = 2;
  for (const float wrong : {NAN, INFINITY, -INFINITY, 2000.0f}) {
    at::Tensor logits = normal({32, 5}, 23);
    data<float>(logits)[11] = wrong;
    EXPECT_THROW(route(loops, at::kCPU, logits, 32, rule), Error) << wrong;
    EXPECT_THROW(route(tensors, host_device, logits, 32, rule), Error) << wrong;
  }
  rule.correction = {0, NAN, 0, 0, 0};
  EXPECT_THROW(route(tensors, host_device, normal({32, 5}, 24), 32, rule), Error);
}

void expect_same_rows(const RoutedRows& found, const RoutedRows& expected) {
  EXPECT_EQ(found.row_blocks, expected.row_blocks);
  EXPECT_EQ(found.first, expected.first);
  EXPECT_EQ(found.largest(), expected.largest());
  EXPECT_TRUE(found.rows.cpu().equal(expected.rows));
  EXPECT_TRUE(found.experts.cpu().equal(expected.experts));
  EXPECT_TRUE(found.weights.cpu().equal(expected.weights));
}

TEST(TensorKernels, ByExpert) {
  RoutingRule rule;
  rule.top_k = 3;
  for (const int64_t N : {0, 1, 64, 150}) {
    at::Tensor chosen = at::zeros({N, 3}, at::kLong), weights = at::zeros({N, 3}, at::kFloat);
    if (N > 0) loops.route(normal({N, 11}, 25, 3), N, rule, chosen, weights, nullptr);
    const auto both = [&](const std::vector<int64_t>& expert_of_row, int64_t experts) {
      const RoutedRows expected = loops.by_expert(chosen, weights, expert_of_row, experts, 64);
      expect_same_rows(tensors.by_expert(there(chosen), there(weights), expert_of_row, experts, 64), expected);
      return expected;
    };
    const RoutedRows plain = both({}, 13);  // two that nobody chose
    EXPECT_EQ(plain.rows.size(0), 3 * N);
    EXPECT_EQ(plain.of(12).size, 0);
    for (int64_t e = 0; e < 13; ++e) {
      int64_t sum = 0;
      for (int64_t b = 0; b < plain.row_blocks; ++b) {
        const auto [begin, size] = plain.of(e, b);
        sum += size;
        for (int64_t i = begin; i < begin + size; ++i) EXPECT_EQ(const_data<int64_t>(plain.rows)[i] / 64, b);
      }
      EXPECT_EQ(sum, plain.of(e).size);
    }
    const RoutedRows alias = both({0, 1, 0, 2, 1, 0, 2, 3, 3, 0, 1}, 4);
    EXPECT_TRUE(N <= 60 || alias.rows.size(0) < 3 * N);
    EXPECT_NEAR(alias.weights.sum().item<double>(), plain.weights.sum().item<double>(), 1e-4);
  }
}

TEST_P(InBothTypes, GatherAndAddRouted) {
  const at::Tensor source = normal({70, 37}, 26).to(GetParam());
  for (const std::vector<int64_t>& list : {std::vector<int64_t>{}, {64}, {65, 68, 69}, {64, 65, 66, 67, 68, 69}}) {
    const at::Tensor rows = at::tensor(at::ArrayRef<int64_t>(list), at::kLong);
    const int64_t m = rows.size(0);
    at::Tensor gathered = at::zeros({8, 37}, GetParam()), device_gathered = there(gathered);
    loops.gather_rows(source, rows, 3, gathered);
    tensors.gather_rows(there(source), there(rows), 3, device_gathered);
    EXPECT_TRUE(device_gathered.cpu().equal(gathered));
    EXPECT_TRUE(m == 0 || gathered[0].equal(source[list[0] - 3]));

    const at::Tensor weights = normal({m}, 27);
    at::Tensor out = normal({70, 37}, 28), device_out = there(out), norms = at::zeros({m}, at::kDouble), device_norms = there(norms);
    loops.add_routed(gathered, rows, weights, out, norms);
    tensors.add_routed(device_gathered, there(rows), there(weights), device_out, device_norms);
    EXPECT_LE(difference(device_out, out), 1e-6);
    EXPECT_LE(difference(device_norms, norms), 1e-12);
  }
}

TEST(TensorKernels, AddByExpert) {
  const at::Tensor chosen = at::randint(0, 6, {90, 1}, at::kLong), weights = normal({90, 1}, 29);
  const RoutedRows routed = loops.by_expert(chosen, weights, {}, 6, 64);
  const RoutedRows device = tensors.by_expert(there(chosen), there(weights), {}, 6, 64);
  const at::Tensor added = normal({90}, 30, 1000).to(at::kDouble);
  for (const bool weighted : {false, true}) {
    at::Tensor sums = at::zeros({2, 6}, at::kLong), device_sums = there(sums);
    loops.add_by_expert(added, routed, weighted, sums);
    tensors.add_by_expert(there(added), device, weighted, device_sums);
    EXPECT_TRUE(device_sums.cpu().equal(sums));
    EXPECT_GT(values(sums).abs().max().item<double>(), 100);
  }
  at::Tensor sums = at::zeros({2, 6}, at::kLong), device_sums = there(sums);
  for (const double wrong : {static_cast<double>(NAN), static_cast<double>(INFINITY), 5e12}) {
    const at::Tensor bad = copy(added);
    data<double>(bad)[17] = wrong;
    EXPECT_THROW(loops.add_by_expert(bad, routed, false, sums), Error);
    EXPECT_THROW(tensors.add_by_expert(there(bad), device, false, device_sums), Error);
  }
}

TEST(TensorKernels, TokenGrams) {
  for (const int64_t tokens : {1, 8, 13}) {
    const at::Tensor y = normal({5, tokens, 33}, 31);
    const at::Tensor expected = at::zeros({tokens, 15}, at::kFloat), found = at::zeros({tokens, 15}, at::kFloat);
    loops.token_grams(y, expected);
    tensors.token_grams(there(y), found);
    EXPECT_LE(difference(found, expected), 1e-7);
  }
}

TEST(TensorKernels, Likelihoods) {
  Compute compute, on_device;
  on_device.device = host_device;
  on_device.kernels = &tensors;
  const int64_t n = 21;
  LikelihoodRows rows = likelihood_rows(n, compute), other_rows = likelihood_rows(n, compute);
  LikelihoodRows device_rows = likelihood_rows(n, on_device), device_other_rows = likelihood_rows(n, on_device);
  at::Tensor cross = at::zeros({n}, at::kDouble), device_cross = there(cross);
  at::Tensor all = normal({32, 150}, 32, 6), all_other = normal({32, 150}, 33, 6);
  all[3].fill_(2);  // equal logits: the first is the likeliest
  for (int64_t first = 0; first < 150; first += 64) {
    const int64_t width = std::min<int64_t>(64, 150 - first);
    const at::Tensor z = all.narrow(1, first, width).contiguous(), other = all_other.narrow(1, first, width).contiguous();
    const at::Tensor device_z = there(z), device_other = there(other);
    loops.likelihoods(z, first, rows, &other, &other_rows, &cross);
    tensors.likelihoods(device_z, first, device_rows, &device_other, &device_other_rows, &device_cross);
  }
  for (const auto& [found, expected] : {std::pair(device_rows, rows), std::pair(device_other_rows, other_rows)}) {
    EXPECT_TRUE(found.top.cpu().equal(expected.top));
    EXPECT_TRUE(found.highest.cpu().equal(expected.highest));
    EXPECT_LE(difference(found.sum, expected.sum), 1e-12);
  }
  EXPECT_LE(difference(device_cross, cross), 1e-11);
  const at::Tensor exact = all.narrow(0, 0, n).to(at::kDouble).logsumexp(1);
  EXPECT_LE(difference(rows.highest.add(rows.sum.log()), exact), 1e-12);
  EXPECT_EQ(rows.top[3].item<int64_t>(), 0);
}

/// A row's result depends neither on its place in a block nor on its neighbours.
TEST_P(InBothTypes, ARowsPlaceDoesNotMatter) {
  const int64_t F = 37, H = 3;
  const at::Tensor gate = normal({64, F}, 34, 3).to(GetParam()), up = normal({64, F}, 35).to(GetParam());
  const auto moved = [](const at::Tensor& t) { return t.roll(13, 0); };
  at::Tensor one = there(gate), two = there(moved(gate));
  tensors.gated_units(one, there(up));
  tensors.gated_units(two, there(moved(up)));
  EXPECT_TRUE(moved(one.cpu()).equal(two.cpu()));

  const at::Tensor x = normal({64, F}, 36), w = normal({F}, 37);
  one = there(at::zeros({64, F}, GetParam()));
  two = there(at::zeros({64, F}, GetParam()));
  tensors.rms_norm(there(x), there(w), 1e-6, one);
  tensors.rms_norm(there(moved(x)), there(w), 1e-6, two);
  EXPECT_TRUE(moved(one.cpu()).equal(two.cpu()));
  tensors.rms_norm(there(x.narrow(0, 0, 5)), there(w), 1e-6, two);  // alone
  EXPECT_TRUE(one.cpu().narrow(0, 0, 5).equal(two.cpu().narrow(0, 0, 5)));

  const at::Tensor heads = normal({64, H * F}, 38).to(GetParam());
  HeadFinish finish{H};
  finish.norm = there(w);
  one = there(heads);
  two = there(moved(heads));
  tensors.finish_heads(one, 64, finish);
  tensors.finish_heads(two, 64, finish);
  EXPECT_TRUE(moved(one.cpu()).equal(two.cpu()));
}

}  // namespace
}  // namespace hcsmoe
