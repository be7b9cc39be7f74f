#pragma once
// Ridge least squares over tokens that are spread over the ranks.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "hcsmoe/ranks.h"

namespace hcsmoe {

// Sums of products over the rows of all ranks, the same on every rank. a [>= n, I] and b [>= n, O] are float32 and hold this rank's rows, n
// = group_end.back(); products are made group by group, so that the bits do not depend on the number of ranks. Collective. Error: a value
// that is not finite.
at::Tensor gram(const at::Tensor& a, const std::vector<int64_t>& group_end, const Ranks&);  // a^T a: float64 [I, I]
at::Tensor cross_product(const at::Tensor& a, const at::Tensor& b, const std::vector<int64_t>& group_end,
                         const Ranks&);  // a^T b: float64 [I, O]

/// Adds share * mean of its diagonal to the diagonal of a square matrix.
void add_ridge(at::Tensor& matrix, double share);

/// The lower Cholesky factor, by LAPACK on one thread: with more it may sum in another order. Undefined where the matrix is not positive
/// definite.
at::Tensor cholesky_factor(const at::Tensor& matrix);

/// (gram + ridge * mean diagonal)^-1 right by Cholesky: float64 [I, O]; undefined where the matrix is not positive definite. Columns are
/// dealt to ranks and threads. Collective.
at::Tensor ridge_solution(const at::Tensor& gram, const at::Tensor& right, double ridge, const Ranks&);

}  // namespace hcsmoe
