#pragma once
// The linear assignment problem, exactly.

#include <cstdint>
#include <span>
#include <vector>

namespace hcsmoe {

/// The permutation of 0 .. n-1 that maximises sum_i scores[i][columns[i]]. scores: row-major [n, n], finite. One thread, O(n^3) at worst;
/// prices are float64, the matrix is not copied. Equal scores give one answer: wherever a step has a choice, it takes the smaller index.
/// The shortest augmenting paths of Jonker and Volgenant (Computing 38, 1987), with their column reduction, reduction transfer and
/// augmenting row reduction as the start. Error: a score is not finite.
std::vector<int32_t> best_assignment(std::span<const float> scores, int64_t n);

}  // namespace hcsmoe
