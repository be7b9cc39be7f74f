#pragma once
// From a UnitMap to what is averaged: of each unit of the merged expert, its parts and their weights.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "hcsmoe/merging.h"

namespace hcsmoe {

/// A unit of a member, as part of a merged unit.
struct UnitPart {
  int32_t member = 0, unit = 0;  // member: index into Cluster::members
  float weight = 0;
};

/// The parts of merged unit u are parts[first[u]] .. parts[first[u + 1] - 1], members ascending, units ascending.
struct UnitParts {
  std::vector<UnitPart> parts;
  std::vector<size_t> first;  // [F + 1]
};

/// Members whose weight is zero take no part. Error: the map does not fit the cluster and its F units, or leaves a merged unit empty.
UnitParts unit_parts(const Cluster&, const UnitMap&, int64_t units);

/// The member in whose order the units of the others are put: the dominant one, or, where that has no weight, the one of the largest. Index
/// into Cluster::members.
size_t reference_member(const Cluster&);

/// Indices of the members whose weight is not zero (in float32, as it is used), ascending.
std::vector<size_t> counting_members(const Cluster&);

}  // namespace hcsmoe
