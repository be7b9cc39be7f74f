#pragma once
// How often the experts of a compressed layer are chosen.

#include <vector>

#include "hcsmoe/report.h"

namespace hcsmoe {

/// Of the sampled tokens, routed by the compressed layer's rows: each expert's share of all choices [K]. sample_input: float32 [S, D].
/// routing: of the original layer of E experts.
std::vector<double> measured_usage(const at::Tensor& sample_input, const CompressedRouter&, const RoutingRule& routing, int64_t experts);
/// Each cluster's share of the choices before [K]: its members' together. Of dropped experts nothing is known.
std::vector<double> usage_of_members(const LayerFigures&);

}  // namespace hcsmoe
