#pragma once
// What ranks find, brought together.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "hcsmoe/ranks.h"

namespace hcsmoe {

/// A deviation and its place in the order of what is checked.
using Placed = std::pair<int64_t, std::string>;
/// All ranks' deviations in order, on rank 0. Collective.
std::vector<std::string> gather_placed(const Ranks&, const std::vector<Placed>&);

}  // namespace hcsmoe
