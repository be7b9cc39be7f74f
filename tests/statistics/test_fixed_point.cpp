#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "statistics/accumulator.h"
#include "statistics/fixed_point.h"

namespace hcsmoe {
namespace {

std::vector<double> values(size_t n) {
  std::mt19937_64 random(5);
  std::vector<double> result(n);
  for (double& v : result)
    v = std::ldexp(static_cast<double>(static_cast<int64_t>(random())), -63) * std::pow(10.0, static_cast<double>(random() % 12) - 6);
  return result;
}

TEST(FixedPointSums, OrderAndGroupingChangeNoBit) {
  std::vector<double> v = values(5000);
  std::vector<int64_t> once(2), shuffled(2), first(2), second(2);
  FixedPointSums a(once), b(shuffled), c(first), d(second);
  for (const double x : v) a.add(0, x);
  for (size_t i = 0; i < v.size(); ++i) (i < 1234 ? c : d).add(0, v[i]);
  std::shuffle(v.begin(), v.end(), std::mt19937(1));
  for (const double x : v) b.add(0, x);
  c.add(d);
  EXPECT_EQ(a.value(0), b.value(0));
  EXPECT_EQ(a.value(0), c.value(0));
}

TEST(FixedPointSums, EachAddendIsRoundedOnceToTwoToTheMinus40) {
  const std::vector<double> v = values(5000);
  std::vector<int64_t> buffer(2);
  FixedPointSums sums(buffer);
  long double exact = 0;
  for (const double x : v) {
    sums.add(0, x);
    exact += static_cast<long double>(x);
  }
  const double error = std::fabs(static_cast<double>(static_cast<long double>(sums.value(0)) - exact));
  std::printf("largest error %g\n", error);
  EXPECT_LE(error, std::ldexp(static_cast<double>(v.size()), -41) + std::fabs(static_cast<double>(exact)) * 1e-15);
}

TEST(FixedPointSums, KernelUnitsAreTheSameNumber) {
  std::vector<int64_t> buffer(4);
  FixedPointSums sums(buffer);
  for (const double x : {0.5, -0.5, 3.25, -1000.125, 1.0 / 1024}) {
    sums.add(0, x);
    sums.add_kernel_units(1, std::llrint(x * (1 << kernel_bits)));
  }
  EXPECT_EQ(sums.value(0), 0.5 - 0.5 + 3.25 - 1000.125 + 1.0 / 1024);
  EXPECT_EQ(sums.value(1), sums.value(0));
}

TEST(FixedPointSums, RefusesWhatItCannotHold) {
  std::vector<int64_t> buffer(2);
  FixedPointSums sums(buffer);
  EXPECT_THROW(sums.add(0, NAN), Error);
  EXPECT_THROW(sums.add(0, std::numeric_limits<double>::infinity()), Error);
  EXPECT_THROW(sums.add(0, -1e13), Error);
  sums.add(0, 1e12);
  EXPECT_EQ(sums.value(0), 1e12);
}

TEST(StatisticsAccumulator, PartsDoNotOverlap) {
  StatisticsAccumulator sums(3, 5);
  const std::vector<at::Tensor> parts = {sums.routed_weight_sum,
                                         sums.router_probability_sum,
                                         sums.routed_output_norm_sum,
                                         sums.weighted_output_norm_sum,
                                         sums.router_logit_sum,
                                         sums.router_logit_gram,
                                         sums.unit_sum};
  sums.tokens.fill_(7);
  sums.routed_count.fill_(1);
  for (size_t p = 0; p < parts.size(); ++p) {
    FixedPointSums part = sums_in(parts[p]);
    for (size_t i = 0; i < part.size(); ++i) part.add(i, static_cast<double>(p) + 0.5);
  }
  for (size_t p = 0; p < parts.size(); ++p) {
    const FixedPointSums part = sums_in(parts[p]);
    EXPECT_EQ(part.size(), p == 5 ? 9u : p == 6 ? 15u : 3u);
    for (size_t i = 0; i < part.size(); ++i) EXPECT_EQ(part.value(i), static_cast<double>(p) + 0.5);
  }
  EXPECT_EQ(sums.tokens.item<int64_t>(), 7);
  EXPECT_EQ(sums.routed_count.sum().item<int64_t>(), 3);
  sums.clear();
  EXPECT_FALSE(sums.buffer.any().item<bool>());
}

TEST(StatisticsAccumulator, SumsOfOneExpertAreAView) {
  StatisticsAccumulator sums(3, 5);
  FixedPointSums of_expert = sums_in(sums.unit_sum.select(1, 2));
  ASSERT_EQ(of_expert.size(), 5u);
  of_expert.add(4, -1.25);
  EXPECT_EQ(sums_in(sums.unit_sum).value(14), -1.25);
}

}  // namespace
}  // namespace hcsmoe
