#include "merging/merge_units.h"

#include <algorithm>

#include "hcsmoe/error.h"
#include "merging/elements.h"

namespace hcsmoe {
namespace {

void check_sizes(const std::vector<std::span<const std::byte>>& members, const UnitParts& units, size_t out_bytes) {
  const size_t F = units.first.size() - 1;
  if (F == 0 || out_bytes % F != 0) throw Error("merged tensors and their units do not fit together");
  for (const auto& member : members) {
    if (member.size() != out_bytes) throw Error("members of a merge differ in size");
  }
}

}  // namespace

void merge_rows(const DType& dtype, const std::vector<std::span<const std::byte>>& members, const UnitParts& units,
                std::span<std::byte> out) {
  check_sizes(members, units, out.size());
  const size_t F = units.first.size() - 1, row_bytes = out.size() / F;
  std::vector<std::span<const std::byte>> rows;
  std::vector<double> weights;
  for (size_t u = 0; u < F; ++u) {
    rows.clear();
    weights.clear();
    for (size_t p = units.first[u]; p < units.first[u + 1]; ++p) {
      const UnitPart& part = units.parts[p];
      rows.push_back(members[static_cast<size_t>(part.member)].subspan(static_cast<size_t>(part.unit) * row_bytes, row_bytes));
      weights.push_back(static_cast<double>(part.weight));
    }
    weighted_mean(dtype, rows, weights, out.subspan(u * row_bytes, row_bytes));
  }
}

void merge_columns(const DType& dtype, const std::vector<std::span<const std::byte>>& members, const UnitParts& units,
                   std::span<std::byte> out) {
  check_sizes(members, units, out.size());
  const Conversion& conversion = conversion_of(dtype);
  const size_t F = units.first.size() - 1, row_bytes = F * conversion.bytes;
  std::vector<bool> counts(members.size(), false);
  std::vector<size_t> from;  // where a part's value stands in `values`
  for (const UnitPart& part : units.parts) {
    counts[static_cast<size_t>(part.member)] = true;
    from.push_back(static_cast<size_t>(part.member) * F + static_cast<size_t>(part.unit));
  }
  std::vector<float> values(members.size() * F), sums(F);
  for (size_t at = 0; at < out.size(); at += row_bytes) {
    for (size_t m = 0; m < members.size(); ++m) {
      if (counts[m]) load_elements(conversion, members[m].subspan(at, row_bytes), values.data() + m * F);
    }
    for (size_t u = 0; u < F; ++u) {
      size_t p = units.first[u];
      float sum = units.parts[p].weight * values[from[p]];
      while (++p < units.first[u + 1]) sum += units.parts[p].weight * values[from[p]];
      sums[u] = sum;
    }
    store_elements(conversion, sums.data(), out.subspan(at, row_bytes));
  }
}

}  // namespace hcsmoe
