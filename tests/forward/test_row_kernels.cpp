#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "forward/row_kernels.h"

namespace hcsmoe {
namespace {

std::vector<float> normal(size_t n, uint64_t seed, float scale = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> draw(0, scale);
  std::vector<float> result(n);
  for (float& x : result) x = draw(random);
  return result;
}

std::vector<uint16_t> half(const std::vector<float>& x) {
  std::vector<uint16_t> result(x.size());
  to_bfloat16(x.data(), static_cast<int64_t>(x.size()), result.data());
  return result;
}

float wide(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

TEST(RowKernels, GatedUnitsEqualTheFormula) {
  double largest = 0;
  for (const int64_t width : {1, 7, 96, 352, 513, 1408}) {
    std::vector<float> gate = normal(static_cast<size_t>(5 * width), 1, 8), up = normal(gate.size(), 2);
    gate[0] = -200;
    gate[1 % gate.size()] = 200;
    const std::vector<float> before = gate;
    gated_units(gate.data(), up.data(), 5, width);
    for (size_t i = 0; i < gate.size(); ++i) {
      const double exact = static_cast<double>(before[i]) / (1 + std::exp(-static_cast<double>(before[i]))) * static_cast<double>(up[i]);
      largest =
          std::max(largest, std::fabs(static_cast<double>(gate[i]) - exact) / (std::fabs(exact) + 1e-30 + (std::fabs(exact) < 1e-30)));
    }
  }
  std::printf("largest relative error %g\n", largest);
  EXPECT_LT(largest, 4e-7);
}

TEST(RowKernels, ARowDependsOnNothingButItself) {
  for (const int64_t width : {5, 96, 300, 1400}) {
    const auto row = static_cast<size_t>(width);
    const std::vector<float> gate = normal(9 * row, 3, 4), up = normal(9 * row, 4);
    std::vector<float> together = gate;
    gated_units(together.data(), up.data(), 9, width);
    for (size_t r = 0; r < 9; ++r) {
      std::vector<float> alone(gate.begin() + static_cast<std::ptrdiff_t>(r * row),
                               gate.begin() + static_cast<std::ptrdiff_t>((r + 1) * row));
      gated_units(alone.data(), up.data() + r * row, 1, width);
      EXPECT_EQ(0, std::memcmp(alone.data(), together.data() + r * row, row * sizeof(float))) << "row " << r << " of width " << width;
    }
  }
}

TEST(RowKernels, SumsAreOfTheUnroundedValuesAndOrderFree) {
  constexpr int64_t rows = 200, width = 700;
  const std::vector<float> gate = normal(rows * width, 5, 3), up = normal(rows * width, 6);
  std::vector<float> h = gate;
  std::vector<int64_t> sums(width), parts(width);
  ASSERT_TRUE(gated_units_summed(h.data(), up.data(), rows, width, sums.data()));
  std::vector<float> plain = gate;
  gated_units(plain.data(), up.data(), rows, width);
  EXPECT_EQ(h, plain);
  for (int64_t c = 0; c < width; ++c) {
    int64_t expected = 0;
    for (int64_t r = 0; r < rows; ++r) expected += std::llrint(static_cast<double>(h[static_cast<size_t>(r * width + c)]) * 1073741824.0);
    ASSERT_EQ(sums[static_cast<size_t>(c)], expected) << "column " << c;
  }
  h = gate;  // the second half first
  ASSERT_TRUE(gated_units_summed(h.data() + 77 * width, up.data() + 77 * width, rows - 77, width, parts.data()));
  ASSERT_TRUE(gated_units_summed(h.data(), up.data(), 77, width, parts.data()));
  EXPECT_EQ(parts, sums);
}

TEST(RowKernels, BFloat16RoundsOnceFromFloat) {
  constexpr int64_t rows = 33, width = 129;
  const std::vector<uint16_t> gate = half(normal(rows * width, 7, 3)), up = half(normal(rows * width, 8));
  std::vector<float> wide_gate(gate.size()), wide_up(up.size());
  to_float(gate.data(), rows * width, wide_gate.data());
  to_float(up.data(), rows * width, wide_up.data());
  std::vector<uint16_t> h = gate;
  std::vector<int64_t> sums(width), wide_sums(width);
  ASSERT_TRUE(gated_units_summed(h.data(), up.data(), rows, width, sums.data()));
  ASSERT_TRUE(gated_units_summed(wide_gate.data(), wide_up.data(), rows, width, wide_sums.data()));
  EXPECT_EQ(h, half(wide_gate));
  EXPECT_EQ(sums, wide_sums);
}

TEST(RowKernels, BFloat16RoundingIsLibtorchs) {
  std::vector<float> x = normal(10000, 9, 100);
  x.insert(x.end(), {0.0f, -0.0f, 1.00390625f, 1.01171875f, 3.3895314e38f, 1e-40f});  // ties, close to the largest, subnormal
  const std::vector<uint16_t> ours = half(x);
  const at::Tensor theirs =
      at::from_blob(x.data(), {static_cast<int64_t>(x.size())}, at::TensorOptions().dtype(at::kFloat)).to(at::kBFloat16);
  EXPECT_EQ(0, std::memcmp(ours.data(), theirs.const_data_ptr(), x.size() * sizeof(uint16_t)));
}

TEST(RowKernels, NotFiniteOrTooLargeIsTold) {
  std::vector<int64_t> sums(4);
  for (const float bad : {NAN, INFINITY, 3e6f}) {
    std::vector<float> gate = {1, 2, 1e3f, 4}, up = {1, 1, bad / 1e3f, 1};
    EXPECT_FALSE(gated_units_summed(gate.data(), up.data(), 1, 4, sums.data())) << bad;
  }
  std::vector<float> z = {1, 2000, 3};
  std::vector<int64_t> gram(9);
  EXPECT_FALSE(outer_product_summed(z.data(), 3, gram.data()));
}

TEST(RowKernels, OuterProductFillsTheUpperHalf) {
  const std::vector<float> z = {0.5f, -2, 3};
  std::vector<int64_t> gram(9);
  ASSERT_TRUE(outer_product_summed(z.data(), 3, gram.data()));
  constexpr double unit = 1073741824.0;
  const std::vector<double> expected = {0.25, -1, 1.5, 0, 4, -6, 0, 0, 9};
  for (size_t i = 0; i < 9; ++i) EXPECT_EQ(static_cast<double>(gram[i]) / unit, expected[i]);
}

TEST(RowKernels, NormAndDot) {
  double largest = 0;
  for (const int64_t width : {1, 15, 16, 17, 128, 2047}) {
    const std::vector<float> x = normal(static_cast<size_t>(width), 10, 5), w = normal(x.size(), 11);
    std::vector<float> out(x.size());
    rms_norm(x.data(), w.data(), 1e-5, width, out.data());
    double squares = 0, product = 0;
    std::vector<double> wide_w(w.begin(), w.end());
    for (size_t i = 0; i < x.size(); ++i) {
      squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      product += static_cast<double>(x[i]) * wide_w[i];
    }
    const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + 1e-5);
    for (size_t i = 0; i < x.size(); ++i) {
      const double exact = static_cast<double>(x[i]) * scale * static_cast<double>(w[i]);
      largest = std::max(largest, std::fabs(static_cast<double>(out[i]) - exact) / (std::fabs(exact) + 1e-20));
    }
    EXPECT_NEAR(dot(x.data(), wide_w.data(), width), product, 1e-10 * (1 + std::fabs(product)));
    EXPECT_NEAR(dot(x.data(), w.data(), width), product, 1e-10 * (1 + std::fabs(product)));
    EXPECT_NEAR(squared(x.data(), width), squares, 1e-9 * (1 + squares));
    double distance = 0;
    std::vector<float> multiplied(x.size()), added(w);
    multiply(x.data(), w.data(), width, multiplied.data());
    multiply_and_add(w.data(), x.data(), x.data(), width, added.data());
    for (size_t i = 0; i < x.size(); ++i) {
      distance += std::pow(static_cast<double>(x[i]) - wide_w[i], 2);
      EXPECT_EQ(multiplied[i], x[i] * w[i]);
      EXPECT_FLOAT_EQ(added[i], w[i] * w[i] + x[i] * x[i]);
    }
    EXPECT_NEAR(squared_difference(x.data(), w.data(), width), distance, 1e-10 * (1 + distance));
    const std::vector<uint16_t> xh = half(x);
    double half_product = 0;
    for (size_t i = 0; i < x.size(); ++i) half_product += static_cast<double>(wide(xh[i])) * wide_w[i];
    EXPECT_NEAR(dot_bfloat16(xh.data(), wide_w.data(), width), half_product, 1e-10 * (1 + std::fabs(half_product)));
    std::vector<float> sum(x.size(), 1);
    const double norm = add_scaled(x.data(), 0.5f, width, sum.data());
    EXPECT_NEAR(norm, squares, 1e-9 * (1 + squares));
    EXPECT_FLOAT_EQ(sum[0], 1 + 0.5f * x[0]);
  }
  std::printf("largest relative error of the norm %g\n", largest);
  EXPECT_LT(largest, 3e-7);
}

}  // namespace
}  // namespace hcsmoe
