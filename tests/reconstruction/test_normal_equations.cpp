// Factors and inverses: against the matrices that they are of, and the same bits for any number of threads.

#include <ATen/Parallel.h>
#include <ATen/ops/eye.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include <cstring>
#include <random>

#include "forward/products.h"
#include "reconstruction/normal_equations.h"

namespace hcsmoe {
namespace {

/// Positive definite: of order 1 on the diagonal.
at::Tensor example(int64_t n) {
  std::mt19937 random(static_cast<unsigned>(n));
  std::normal_distribution<double> normal;
  at::Tensor factor = at::eye(n, at::kDouble);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) data<double>(factor)[i * n + j] = normal(random) / std::sqrt(static_cast<double>(n));
  }
  return factor.matmul(factor.t()).contiguous();
}

bool same(const at::Tensor& a, const at::Tensor& b) { return std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0; }

class NormalEquations : public testing::TestWithParam<int64_t> {
 protected:
  Ranks ranks{MPI_COMM_SELF};
  ~NormalEquations() override { at::set_num_threads(1); }
};

TEST_P(NormalEquations, ThreadsDoNotMatter) {
  const at::Tensor matrix = example(GetParam());
  const std::vector<Damped> two{{matrix, 0.01}, {matrix, 0.1}};
  at::set_num_threads(1);
  const auto factors = cholesky_factors(two, ranks), inverted = inverses(two, ranks);
  for (const int threads : {2, 3}) {
    at::set_num_threads(threads);
    const auto other_factors = cholesky_factors(two, ranks), other_inverted = inverses(two, ranks);
    for (size_t i = 0; i < two.size(); ++i) {
      EXPECT_TRUE(same(factors[i], other_factors[i])) << "factor " << i << ", " << threads << " threads";
      EXPECT_TRUE(same(inverted[i], other_inverted[i])) << "inverse " << i << ", " << threads << " threads";
    }
  }
}

TEST_P(NormalEquations, FactorsAndInversesAreThoseOfTheDampedMatrix) {
  const int64_t n = GetParam();
  const at::Tensor matrix = example(n);
  at::Tensor damped = matrix.clone();
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) trace += data<double>(matrix)[i * n + i];
  for (int64_t i = 0; i < n; ++i) data<double>(damped)[i * n + i] += 0.1 * trace / static_cast<double>(n);
  const at::Tensor factor = cholesky_factors({{matrix, 0.1}}, ranks).front().to(at::kDouble);
  EXPECT_LT(factor.matmul(factor.t()).sub(damped).abs().max().item<double>(), 1e-5);
  const at::Tensor inverse = inverses({{matrix, 0.1}}, ranks).front().to(at::kDouble);
  EXPECT_LT(inverse.matmul(damped).sub(at::eye(n, at::kDouble)).abs().max().item<double>(), 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Sizes, NormalEquations, testing::Values(1, 12, 96, 192, 333, 512, 1024, 1408), testing::PrintToStringParamName());

TEST(NormalEquation, WhatIsNotPositiveDefiniteHasNoFactor) {
  const Ranks ranks(MPI_COMM_SELF);
  const at::Tensor matrix = at::eye(3, at::kDouble).neg();
  const auto found = cholesky_factors({{matrix, 0.0}, {at::eye(3, at::kDouble), 0.0}}, ranks);
  EXPECT_FALSE(found[0].defined());
  EXPECT_TRUE(found[1].defined());
  EXPECT_FALSE(inverses({{matrix, 0.0}}, ranks)[0].defined());
}

}  // namespace
}  // namespace hcsmoe
