#pragma once
// Ridge least squares over tokens that are spread over the ranks.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "forward/products.h"
#include "hcsmoe/ranks.h"

namespace hcsmoe {

/// Copies of the rows in padded groups, and int64 sums, kept from product to product.
struct GroupBuffers {
  Buffer left, right;
  std::vector<int64_t> sums;
};

// Sums of products over the rows of all ranks, the same on every rank. a [>= n, I] and b [>= n, O], both float32 or both bfloat16, hold
// this rank's rows, n = group_end.back(); products are made group by group, so that the bits do not depend on the number of ranks.
// Collective. Error: a value that is not finite.
at::Tensor gram(const at::Tensor& a, const std::vector<int64_t>& group_end, GroupBuffers&, const Ranks&);  // a^T a: float64 [I, I]
at::Tensor cross_product(const at::Tensor& a, const at::Tensor& b, const std::vector<int64_t>& group_end, GroupBuffers&,
                         const Ranks&);  // a^T b: float32 [I, O]

/// A matrix and what is added to its diagonal, as a share of the diagonal's mean.
struct Damped {
  at::Tensor matrix;  // float64
  double share = 0;
};
/// The lower Cholesky factors, made in float64 and rounded to float32, or the inverses, made in float32: by LAPACK on one thread (with more
/// it may sum in another order); undefined where a matrix is not positive definite. Dealt to ranks and threads. Collective.
std::vector<at::Tensor> cholesky_factors(const std::vector<Damped>&, const Ranks&);
std::vector<at::Tensor> inverses(const std::vector<Damped>&, const Ranks&);

/// X of A X = right, transposed: float32 [O, I]. factor float32 [I, I] of A, right float32 [I, O]. Columns are dealt to ranks and threads.
/// Collective.
at::Tensor solved(const at::Tensor& factor, const at::Tensor& right, const Ranks&);

}  // namespace hcsmoe
