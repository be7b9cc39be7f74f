#include <algorithm>
#include <cstring>
#include <string>

#include "hcsmoe/error.h"
#include "hcsmoe/merging.h"
#include "merging/conversions.h"
#include "merging/elements.h"

namespace hcsmoe {
namespace {

/// What one block needs, on the stack. What lies beyond the last elements of the last block is computed with, and dropped.
struct Block {
  alignas(64) float sums[block_elements] = {};
  alignas(64) float values[block_elements] = {};
  alignas(64) uint16_t stored[block_elements] = {};

  void load(const Conversion& conversion, const std::byte* from, size_t bytes) {
    if (conversion.load) {
      std::memcpy(stored, from, bytes);
      conversion.load(stored, values);
    } else {
      std::memcpy(values, from, bytes);
    }
  }
  void store(const Conversion& conversion, std::byte* to, size_t bytes) {
    if (conversion.store) {
      conversion.store(sums, stored);
      std::memcpy(to, stored, bytes);
    } else {
      std::memcpy(to, sums, bytes);
    }
  }
};

}  // namespace

void weighted_mean(const DType& dtype, const std::vector<std::span<const std::byte>>& members, const std::vector<double>& weights,
                   std::span<std::byte> out) {
  const Conversion& conversion = conversion_of(dtype);
  const bool same_size = std::all_of(members.begin(), members.end(), [&](const auto& member) { return member.size() == out.size(); });
  if (members.size() != weights.size() || !same_size || out.size() % conversion.bytes != 0) {
    throw Error("weighted_mean: members, weights and output do not fit together");
  }
  struct Term {
    const std::byte* bytes;
    float weight;
  };
  std::vector<Term> terms;
  for (size_t m = 0; m < members.size(); m++) {
    const auto weight = static_cast<float>(weights[m]);
    if (weight != 0) terms.push_back({members[m].data(), weight});
  }
  if (terms.empty()) throw Error("weighted_mean: no member has a weight");
  if (terms.size() == 1 && terms[0].weight == 1) {
    if (!out.empty()) std::memcpy(out.data(), terms[0].bytes, out.size());
    return;
  }
  Block block;
  const size_t step = block_elements * conversion.bytes;
  for (size_t at = 0; at < out.size(); at += step) {
    const size_t bytes = std::min(step, out.size() - at);
    for (size_t m = 0; m < terms.size(); m++) {
      block.load(conversion, terms[m].bytes + at, bytes);
      (m == 0 ? multiply : add_product)(block.values, terms[m].weight, block.sums);
    }
    block.store(conversion, out.data() + at, bytes);
  }
}

}  // namespace hcsmoe
