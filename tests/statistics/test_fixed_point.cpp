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
  sums.tokens[0] = 7;
  for (size_t e = 0; e < 3; ++e) {
    sums.routed_count[e] = 1;
    sums.routed_weight_sum.add(e, 2);
    sums.router_probability_sum.add(e, 3);
    sums.routed_output_norm_sum.add(e, 4);
    sums.weighted_output_norm_sum.add(e, 5);
    sums.router_logit_sum.add(e, 6);
    for (size_t f = 0; f < 3; ++f) sums.router_logit_gram.add(e * 3 + f, 8);
    for (size_t c = 0; c < 5; ++c) sums.unit_sum.add(e * 5 + c, 9);
  }
  for (size_t e = 0; e < 3; ++e) {
    EXPECT_EQ(sums.routed_weight_sum.value(e), 2);
    EXPECT_EQ(sums.router_probability_sum.value(e), 3);
    EXPECT_EQ(sums.routed_output_norm_sum.value(e), 4);
    EXPECT_EQ(sums.weighted_output_norm_sum.value(e), 5);
    EXPECT_EQ(sums.router_logit_sum.value(e), 6);
  }
  EXPECT_EQ(sums.unit_sum.size(), 15u);
  EXPECT_EQ(sums.unit_sum.value(14), 9);
  EXPECT_EQ(sums.router_logit_gram.value(8), 8);
  EXPECT_EQ(sums.tokens[0], 7);
  sums.clear();
  EXPECT_EQ(std::count(sums.buffer.begin(), sums.buffer.end(), 0), static_cast<std::ptrdiff_t>(sums.buffer.size()));
}

}  // namespace
}  // namespace hcsmoe
