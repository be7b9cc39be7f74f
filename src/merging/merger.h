#pragma once
// How the tensors of a cluster's members become one: by loops over their bytes in host memory, or by operations on a device. Both compute
// the same bits: float32 products and sums in one order, rounded once.

#include <c10/core/Device.h>

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "hcsmoe/checkpoint.h"
#include "merging/unit_map.h"

namespace hcsmoe {

using MemberBytes = std::vector<std::span<const std::byte>>;

class Merger {
 public:
  virtual ~Merger() = default;
  /// weighted_mean (hcsmoe/merging.h).
  virtual void mean(const DType&, const MemberBytes& members, const std::vector<double>& weights, std::span<std::byte> out) const = 0;
  /// merge_rows and merge_columns (merge_units.h).
  virtual void rows(const DType&, const MemberBytes& members, const UnitParts&, std::span<std::byte> out) const = 0;
  virtual void columns(const DType&, const MemberBytes& members, const UnitParts&, std::span<std::byte> out) const = 0;
};

std::unique_ptr<Merger> merger_on(c10::Device device);

}  // namespace hcsmoe
