// weighted_mean against a plain loop: float32 products and sums in order, and c10's conversions.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "hcsmoe/error.h"
#include "hcsmoe/merging.h"

namespace hcsmoe {
namespace {

using Bytes = std::vector<std::byte>;

template <class T>
const char* dtype_name();
template <>
const char* dtype_name<float>() {
  return "F32";
}
template <>
const char* dtype_name<c10::BFloat16>() {
  return "BF16";
}
template <>
const char* dtype_name<c10::Half>() {
  return "F16";
}

template <class T>
std::vector<T> merge(const std::vector<std::vector<T>>& members, const std::vector<double>& weights) {
  std::vector<T> out(members[0].size());
  std::vector<std::span<const std::byte>> spans;
  for (const auto& member : members) spans.push_back(std::as_bytes(std::span(member)));
  weighted_mean(dtype_from_name(dtype_name<T>()), spans, weights, std::as_writable_bytes(std::span(out)));
  return out;
}

/// No contraction here either: each product is stored before it is added.
template <class T>
std::vector<T> reference(const std::vector<std::vector<T>>& members, const std::vector<double>& weights) {
  std::vector<T> out;
  for (size_t i = 0; i < members[0].size(); i++) {
    float sum = 0;
    bool first = true;
    for (size_t m = 0; m < members.size(); m++) {
      const auto weight = static_cast<float>(weights[m]);
      if (weight == 0) continue;
      const volatile float product = weight * static_cast<float>(members[m][i]);
      sum = first ? product : sum + product;
      first = false;
    }
    out.push_back(static_cast<T>(sum));
  }
  return out;
}

/// The same bits, or both a NaN.
template <class T>
::testing::AssertionResult same(const std::vector<T>& ours, const std::vector<T>& theirs) {
  if (ours.size() != theirs.size()) return ::testing::AssertionFailure() << ours.size() << " elements";
  for (size_t i = 0; i < ours.size(); i++) {
    const auto a = static_cast<float>(ours[i]), b = static_cast<float>(theirs[i]);
    if (std::isnan(a) && std::isnan(b)) continue;
    if (std::memcmp(&ours[i], &theirs[i], sizeof(T)) != 0)
      return ::testing::AssertionFailure() << "element " << i << ": " << a << ", not " << b;
  }
  return ::testing::AssertionSuccess();
}

template <class T>
class WeightedMean : public ::testing::Test {};
using Types = ::testing::Types<float, c10::BFloat16, c10::Half>;
TYPED_TEST_SUITE(WeightedMean, Types);

TYPED_TEST(WeightedMean, EqualsTheReferenceBitForBit) {
  std::mt19937 random(1);
  size_t elements = 0;
  for (const size_t length : {1, 2, 3, 31, 2047, 2048, 2049, 4096, 5001}) {
    for (const size_t count : {1, 2, 3, 7}) {
      std::vector<double> weights;
      for (size_t m = 0; m < count; m++) weights.push_back(0.1 + static_cast<double>(random() % 1000) / 1000 / static_cast<double>(count));
      if (count > 2) weights[1] = 0;
      std::vector<std::vector<TypeParam>> members(count);
      for (auto& member : members) {
        for (size_t i = 0; i < length; i++) {
          const float size = std::ldexp(1.0F, static_cast<int>(random() % 40) - 26);
          member.push_back(static_cast<TypeParam>(size * (static_cast<float>(random() % 2001) - 1000) / 1000));
        }
      }
      ASSERT_TRUE(same(merge(members, weights), reference(members, weights))) << length << " elements, " << count << " members";
      elements += length;
    }
  }
  std::printf("%s: %zu elements equal the reference bit for bit\n", dtype_name<TypeParam>(), elements);
}

TYPED_TEST(WeightedMean, TakesInfinityNanZeroAndSubnormals) {
  const auto value = [](float x) { return static_cast<TypeParam>(x); };
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> special = {0.0F,  -0.0F,  inf,     -inf,    std::nanf(""), 1.0F,    65504.0F, -65504.0F,
                                      6e-8F, -6e-8F, 5.9e-5F, 6.1e-5F, 1e-40F,        3.3e38F, -3.3e38F, 0x1p-24F};
  std::vector<std::vector<TypeParam>> members(2);
  for (const float a : special) {
    for (const float b : special) {
      members[0].push_back(value(a));
      members[1].push_back(value(b));
    }
  }
  for (const double weight : {0.5, 0.25, 0.999, 1e-7}) {
    ASSERT_TRUE(same(merge(members, {weight, 1 - weight}), reference(members, {weight, 1 - weight})));
  }
}

TYPED_TEST(WeightedMean, CopiesASingleMemberByteForByte) {
  std::vector<std::vector<TypeParam>> members(3, std::vector<TypeParam>(5000));
  std::mt19937 random(2);
  for (auto& member : members) {
    auto* bytes = reinterpret_cast<unsigned char*>(member.data());
    for (size_t i = 0; i < member.size() * sizeof(TypeParam); i++) bytes[i] = static_cast<unsigned char>(random());  // every kind of NaN
  }
  const auto is_copy = [&](const std::vector<TypeParam>& out, size_t m) {
    return std::memcmp(out.data(), members[m].data(), out.size() * sizeof(TypeParam)) == 0;
  };
  EXPECT_TRUE(is_copy(merge(members, {0, 1, 0}), 1));
  EXPECT_TRUE(is_copy(merge(members, {0, 0, 1}), 2));
  EXPECT_TRUE(is_copy(merge<TypeParam>({members[0]}, {1}), 0));
  EXPECT_FALSE(is_copy(merge(members, {0, 0.5, 0.5}), 1));
}

TYPED_TEST(WeightedMean, LeavesOutMembersOfNoWeight) {
  const std::vector<std::vector<TypeParam>> members = {
      {static_cast<TypeParam>(2)}, {static_cast<TypeParam>(std::numeric_limits<float>::infinity())}, {static_cast<TypeParam>(4)}};
  EXPECT_EQ(static_cast<float>(merge(members, {0.5, 0, 0.5})[0]), 3.0F);
}

TYPED_TEST(WeightedMean, ReadsAndWritesAtAnyAddress) {
  constexpr size_t length = 3001;
  const std::vector<double> weights = {0.3, 0.7};
  std::vector<std::vector<TypeParam>> members(2);
  std::vector<Bytes> shifted(2, Bytes(length * sizeof(TypeParam) + 1));
  std::vector<std::span<const std::byte>> spans;
  for (size_t m = 0; m < 2; m++) {
    for (size_t i = 0; i < length; i++) members[m].push_back(static_cast<TypeParam>(std::sin(static_cast<float>(i + m))));
    std::memcpy(shifted[m].data() + 1, members[m].data(), length * sizeof(TypeParam));
    spans.push_back(std::span<const std::byte>(shifted[m]).subspan(1));
  }
  Bytes out(length * sizeof(TypeParam) + 1);
  weighted_mean(dtype_from_name(dtype_name<TypeParam>()), spans, weights, std::span(out).subspan(1));
  const auto expected = reference(members, weights);
  EXPECT_EQ(std::memcmp(out.data() + 1, expected.data(), length * sizeof(TypeParam)), 0);
}

/// Every value of a 16-bit type survives the way to float32 and back; the half-way points between neighbours go to the even one.
template <class T>
void check_all_16_bit_values() {
  std::vector<T> all;
  for (uint32_t bits = 0; bits < 0x10000; bits++) all.push_back(T(static_cast<uint16_t>(bits), T::from_bits()));
  // 0.5 x + 0.5 x is exact in float32.
  ASSERT_TRUE(same(merge<T>({all, all}, {0.5, 0.5}), all));
  std::vector<T> next(all.begin() + 1, all.end());
  next.push_back(all[0]);
  const auto half_way = merge<T>({all, next}, {0.5, 0.5});
  ASSERT_TRUE(same(half_way, reference<T>({all, next}, {0.5, 0.5})));
  size_t ties = 0;
  for (size_t i = 0; i + 1 < all.size(); i++) {
    const auto a = static_cast<float>(all[i]), b = static_cast<float>(all[i + 1]);
    if (!std::isfinite(a) || !std::isfinite(b) || std::signbit(a) != std::signbit(b) || a == b) continue;
    ASSERT_EQ(half_way[i].x & 1, 0) << a << " and " << b;
    ties++;
  }
  std::printf("%s: %zu ties of rounding go to the even neighbour\n", dtype_name<T>(), ties);
  EXPECT_GT(ties, 60000u);
}
TEST(Rounding, BFloat16) { check_all_16_bit_values<c10::BFloat16>(); }
TEST(Rounding, Half) { check_all_16_bit_values<c10::Half>(); }

TEST(WeightedMeanMisuse, IsRefused) {
  const DType f32 = dtype_from_name("F32");
  const Bytes four(4), eight(8);
  Bytes out(4);
  EXPECT_THROW(weighted_mean(f32, {four, eight}, {0.5, 0.5}, out), Error);
  EXPECT_THROW(weighted_mean(f32, {four}, {0.5, 0.5}, out), Error);
  EXPECT_THROW(weighted_mean(f32, {four, four}, {0, 0}, out), Error);
  EXPECT_THROW(weighted_mean(f32, {}, {}, out), Error);
  Bytes odd(3);
  EXPECT_THROW(weighted_mean(f32, {odd, odd}, {0.5, 0.5}, odd), Error);
  try {
    weighted_mean(dtype_from_name("I64"), {eight}, {1}, std::span(out));
    FAIL();
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("I64"), std::string::npos);
  }
}

}  // namespace
}  // namespace hcsmoe
