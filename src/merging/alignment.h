#pragma once
// Which intermediate units of two experts belong together. All of this runs on the calling thread (products too, inside for_each_task), and
// may run on several at once.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "hcsmoe/forward.h"
#include "merging/unit_map.h"

namespace hcsmoe {

inline constexpr int64_t unit_tile = 2048;  // units at a time: what is converted and not yet summed stays small

/// h = act(gate x) * (up x) of all units on the sample x, float32 [S, D]. float32 [S, F]
at::Tensor unit_activations(const at::Tensor& x, const ExpertWeights&);

/// Of every column of h [S, F]: minus its mean, divided by its standard deviation (S - 1) + 1e-6. Zero where S is 1. float32 [S, F]
at::Tensor standardised(const at::Tensor& h);

/// Correlation of units over tokens, of standardised activations: a^T b / S. float32 [F, F]
at::Tensor unit_correlations(const at::Tensor& a, const at::Tensor& b);

/// scores[i][j] += cosine of the weights of unit i of a and unit j of b: gate row, up row and down column as one vector. Works in tiles, so
/// that no more than a few MB of converted weights are in memory at once.
void add_weight_cosines(const ExpertWeights& a, const ExpertWeights& b, at::Tensor& scores);

/// Of each unit of b the unit of a that it is matched with, one to one, of the largest sum of correlation + weight cosine.
std::vector<int32_t> matched_units(const ExpertWeights& a, const at::Tensor& a_standardised, const ExpertWeights& b, const at::Tensor& x);

/// Of each unit of b the unit of a that it correlates with most, of equals the first; several may have the same (fix-dominant).
std::vector<int32_t> most_correlated_units(const at::Tensor& a_standardised, const ExpertWeights& b, const at::Tensor& x);

/// Greedy matching within and across experts (ZipIt, arXiv 2305.03053), successively: the reference's units and those of the first other
/// member are pooled and the most correlated pair is merged until F are left; these and the next member's are pooled, and so on. experts:
/// of all members; those of no weight take no part.
UnitMap zipped_units(const Cluster&, const std::vector<ExpertWeights>& experts, const at::Tensor& x);

/// The greedy step: from the correlations [n, n] of pooled units, the group of each, 0 .. keep-1 by smallest unit. A merged unit takes the
/// place of its smaller one, with 0.1 x the smaller of their correlations with any other, so that units are merged again only where nothing
/// else is left. correlations is overwritten.
std::vector<int32_t> zip_pool(at::Tensor& correlations, int64_t keep);

}  // namespace hcsmoe
