#pragma once
// Products of long vectors with each other, added up in an order that neither ranks nor threads change.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace hcsmoe {

/// Writes elements begin .. begin+n of vector `row` to `out` (float64 [n]).
using FillElements = std::function<void(int64_t row, int64_t begin, int64_t n, const at::Tensor& out)>;

/// The Gram matrix of `rows` vectors is the sum of those of gram_parts parts of their elements. These are the parts first, first + step,
/// ... as bytes, in order. Runs on this rank's threads.
inline constexpr int64_t gram_parts = 32;
std::string gram_of_parts(int64_t rows, int64_t elements, int64_t first, int64_t step, const FillElements& fill);

/// The sum of matrices that ranks hold in turns: matrix m is the (m / P)-th of holders[m mod P]. float64 [rows, rows].
at::Tensor sum_of_matrices(const std::vector<std::string>& holders, int64_t rows, int64_t matrices);

/// Linear CKA from the products of centred Gram matrices, <K_e, K_f> (Kornblith et al., arXiv 1905.00414, equation 4). A matrix of zeros is
/// like none but its equals. float64 [E, E]
at::Tensor cka_of(const at::Tensor& hsic);

}  // namespace hcsmoe
