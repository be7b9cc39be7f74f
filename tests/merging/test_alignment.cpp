// Alignment on experts small enough to think about: a permuted expert computes the same function, and merging it with the original gives
// the original back. test_against_scipy.py compares orders, maps and merged tensors with references.
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "forward/products.h"
#include "hcsmoe/error.h"
#include "merging/alignment.h"
#include "merging/assignment.h"
#include "merging/merge_units.h"

namespace hcsmoe {
namespace {

constexpr int64_t D = 24, F = 40, S = 64;

at::Tensor noise(std::mt19937& random, std::vector<int64_t> shape) {
  std::normal_distribution<float> normal;
  at::Tensor tensor = at::empty(shape, at::TensorOptions().dtype(at::kFloat));
  for (int64_t i = 0; i < tensor.numel(); ++i) data<float>(tensor)[i] = normal(random);
  return tensor;
}

ExpertWeights random_expert(std::mt19937& random) { return {noise(random, {F, D}), noise(random, {F, D}), noise(random, {D, F})}; }

std::vector<int32_t> random_order(std::mt19937& random) {
  std::vector<int32_t> order(F);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

/// Unit i of the result is unit order[i] of the expert.
ExpertWeights permuted(const ExpertWeights& expert, const std::vector<int32_t>& order) {
  ExpertWeights result{at::empty({F, D}, at::kFloat), at::empty({F, D}, at::kFloat), at::empty({D, F}, at::kFloat)};
  for (int64_t i = 0; i < F; ++i) {
    const int64_t from = order[static_cast<size_t>(i)];
    result.gate[i].copy_(expert.gate[from]);
    result.up[i].copy_(expert.up[from]);
    result.down.select(1, i).copy_(expert.down.select(1, from));
  }
  return result;
}

at::Tensor output(const ExpertWeights& expert, const at::Tensor& x) { return unit_activations(x, expert).mm(expert.down.t()); }

double largest_difference(const at::Tensor& a, const at::Tensor& b) { return a.sub(b).abs().max().item<double>(); }

std::span<const std::byte> bytes(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

ExpertWeights merged(const Cluster& cluster, const std::vector<ExpertWeights>& experts, const UnitMap& map) {
  const UnitParts parts = unit_parts(cluster, map, F);
  const DType f32 = dtype_from_name("F32");
  ExpertWeights result{at::empty({F, D}, at::kFloat), at::empty({F, D}, at::kFloat), at::empty({D, F}, at::kFloat)};
  std::vector<std::span<const std::byte>> gates, ups, downs;
  for (const ExpertWeights& expert : experts) {
    gates.push_back(bytes(expert.gate));
    ups.push_back(bytes(expert.up));
    downs.push_back(bytes(expert.down));
  }
  const auto out = [](at::Tensor& tensor) { return std::span(static_cast<std::byte*>(tensor.mutable_data_ptr()), tensor.nbytes()); };
  merge_rows(f32, gates, parts, out(result.gate));
  merge_rows(f32, ups, parts, out(result.up));
  merge_columns(f32, downs, parts, out(result.down));
  return result;
}

bool equal(const ExpertWeights& a, const ExpertWeights& b) { return a.gate.equal(b.gate) && a.up.equal(b.up) && a.down.equal(b.down); }

UnitMap identity(size_t members) {
  std::vector<int32_t> units(F);
  std::iota(units.begin(), units.end(), 0);
  return UnitMap(members, units);
}

TEST(Alignment, APermutedExpertComputesTheSameFunction) {
  std::mt19937 random(1);
  const ExpertWeights expert = random_expert(random);
  const at::Tensor x = noise(random, {S, D});
  const at::Tensor before = output(expert, x), after = output(permuted(expert, random_order(random)), x);
  const double error = largest_difference(before, after) / before.abs().max().item<double>();
  std::printf("largest difference of the outputs: %.1e of the largest output\n", error);
  EXPECT_LT(error, 1e-5);
}

TEST(Alignment, MatchingUndoesAPermutation) {
  std::mt19937 random(2);
  for (int round = 0; round < 5; ++round) {
    const ExpertWeights expert = random_expert(random);
    const at::Tensor x = noise(random, {S, D});
    const std::vector<int32_t> order = random_order(random);
    const ExpertWeights other = permuted(expert, order);
    const at::Tensor reference = standardised(unit_activations(x, expert));
    EXPECT_EQ(matched_units(expert, reference, other, x), order);
    EXPECT_EQ(most_correlated_units(reference, other, x), order);
  }
}

TEST(Alignment, PermutedDuplicatesMergeWithoutLossInEveryMerge) {
  std::mt19937 random(3);
  const ExpertWeights expert = random_expert(random);
  const at::Tensor x = noise(random, {S, D});
  const std::vector<int32_t> first = random_order(random), second = random_order(random);
  const std::vector<ExpertWeights> experts = {permuted(expert, first), expert, permuted(expert, second), random_expert(random)};
  // The fourth weighs nothing: it takes no part.
  const Cluster cluster{{2, 5, 6, 9}, {0.25, 0.5, 0.25, 0}, {0.25, 0.5, 0.25, 0}, 5};
  UnitMap map = identity(4);
  const at::Tensor reference = standardised(unit_activations(x, expert));
  map[0] = matched_units(expert, reference, experts[0], x);
  map[2] = matched_units(expert, reference, experts[2], x);
  EXPECT_TRUE(equal(merged(cluster, experts, map), expert)) << "aligned";
  map[0] = most_correlated_units(reference, experts[0], x);
  map[2] = most_correlated_units(reference, experts[2], x);
  EXPECT_TRUE(equal(merged(cluster, experts, map), expert)) << "fix-dominant";
  EXPECT_TRUE(equal(merged(cluster, experts, zipped_units(cluster, experts, x)), expert)) << "zipit";
  EXPECT_FALSE(equal(merged(cluster, experts, identity(4)), expert)) << "without alignment";
}

TEST(Alignment, DoesNotMindUnitsThatNeverFireOrASingleToken) {
  std::mt19937 random(5);
  ExpertWeights expert = random_expert(random);
  expert.gate.narrow(0, 3, 4).zero_();
  expert.up.narrow(0, 3, 4).zero_();
  expert.down.narrow(1, 3, 2).zero_();  // two of them without any weight
  const std::vector<int32_t> order = random_order(random);
  const ExpertWeights other = permuted(expert, order);
  for (const int64_t tokens : {int64_t{1}, S}) {
    const at::Tensor x = noise(random, {tokens, D});
    const auto found = matched_units(expert, standardised(unit_activations(x, expert)), other, x);
    for (int64_t i = 0; i < F; ++i) {
      const int32_t unit = order[static_cast<size_t>(i)];
      if (unit == 3 || unit == 4) continue;
      EXPECT_EQ(found[static_cast<size_t>(i)], unit) << tokens << " tokens";
    }
  }
}

TEST(ZipPool, MergesTheMostCorrelatedPairsFirst) {
  // 0-3 go first (0.9), then 1-2 (0.8): 0's other correlations were cut to a tenth.
  at::Tensor table = at::empty({4, 4}, at::kFloat);
  const float values[] = {1, 0.85F, 0.1F, 0.9F, 0.85F, 1, 0.8F, 0.3F, 0.1F, 0.8F, 1, 0.2F, 0.9F, 0.3F, 0.2F, 1};
  std::copy(std::begin(values), std::end(values), data<float>(table));
  at::Tensor copy = table.clone();
  EXPECT_EQ(zip_pool(copy, 2), (std::vector<int32_t>{0, 1, 1, 0}));
  copy = table.clone();
  EXPECT_EQ(zip_pool(copy, 3), (std::vector<int32_t>{0, 1, 2, 0}));
  copy = table.clone();
  EXPECT_EQ(zip_pool(copy, 1), (std::vector<int32_t>{0, 0, 0, 0}));
  data<float>(table)[1] = std::nanf("");
  EXPECT_THROW(zip_pool(table, 2), Error);
}

TEST(BestAssignment, TakesSmallCases) {
  EXPECT_EQ(best_assignment({}, 0), std::vector<int32_t>{});
  EXPECT_EQ(best_assignment(std::vector<float>{-7}, 1), std::vector<int32_t>{0});
  EXPECT_EQ(best_assignment(std::vector<float>{1, 2, 3, 5}, 2), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(best_assignment(std::vector<float>{1, 3, 3, 4}, 2), (std::vector<int32_t>{1, 0}));
  EXPECT_EQ(best_assignment(std::vector<float>(49, 0.5F), 7), best_assignment(std::vector<float>(49, -2.0F), 7));
}

TEST(BestAssignment, RefusesWhatIsNoScoreMatrix) {
  EXPECT_THROW(best_assignment(std::vector<float>(6), 2), Error);
  EXPECT_THROW(best_assignment(std::vector<float>{0, 1, std::nanf(""), 0}, 2), Error);
  EXPECT_THROW(best_assignment(std::vector<float>{0, 1, INFINITY, 0}, 2), Error);
}

TEST(UnitParts, WeighMembersWithinTheirUnit) {
  const Cluster cluster{{0, 1}, {0.25, 0.75}, {1, 0}, 1};
  const UnitParts parts = unit_parts(cluster, {{0, 0, 2}, {0, 1, 2}}, 3);
  EXPECT_EQ(parts.first, (std::vector<size_t>{0, 3, 4, 6}));
  const float weights[] = {0.2F, 0.2F, 0.6F, 1, 0.25F, 0.75F};
  const int32_t members[] = {0, 0, 1, 1, 0, 1}, units[] = {0, 1, 0, 1, 2, 2};
  for (size_t p = 0; p < 6; ++p) {
    EXPECT_FLOAT_EQ(parts.parts[p].weight, weights[p]);
    EXPECT_EQ(parts.parts[p].member, members[p]);
    EXPECT_EQ(parts.parts[p].unit, units[p]);
  }
  EXPECT_EQ(reference_member(cluster), 1u);
  EXPECT_EQ(reference_member({{0, 1}, {1, 0}, {1, 0}, 1}), 0u) << "a dominant member that weighs nothing is no reference";
}

TEST(UnitParts, RefuseMapsThatDoNotFit) {
  const Cluster cluster{{0, 1}, {0.25, 0.75}, {1, 0}, 1};
  EXPECT_THROW(unit_parts(cluster, {{0, 1}}, 2), Error);
  EXPECT_THROW(unit_parts(cluster, {{0, 1}, {0}}, 2), Error);
  EXPECT_THROW(unit_parts(cluster, {{0, 2}, {0, 1}}, 2), Error);
  EXPECT_THROW(unit_parts(cluster, {{0, -1}, {0, 1}}, 2), Error);
  EXPECT_THROW(unit_parts(cluster, {{0, 0}, {0, 0}}, 2), Error);
}

}  // namespace
}  // namespace hcsmoe
