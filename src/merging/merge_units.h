#pragma once
// The tensors of a merged expert whose units come from different places of its members.

#include <cstddef>
#include <span>
#include <vector>

#include "hcsmoe/checkpoint.h"
#include "merging/unit_map.h"

namespace hcsmoe {

/// gate or up: row u of `out` is the sum of weight x row over the parts of u, in order, in float32, rounded once. Every member and out:
/// [F, D], of one floating type.
void merge_rows(const DType&, const std::vector<std::span<const std::byte>>& members, const UnitParts&, std::span<std::byte> out);

/// down: the same for columns. Every member and out: [D, F].
void merge_columns(const DType&, const std::vector<std::span<const std::byte>>& members, const UnitParts&, std::span<std::byte> out);

}  // namespace hcsmoe
