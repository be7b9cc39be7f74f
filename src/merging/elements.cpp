#include "merging/elements.h"

#include <algorithm>
#include <cstring>

#include "hcsmoe/error.h"
#include "merging/conversions.h"

namespace hcsmoe {
namespace {

constexpr Conversion conversions[] = {
    {"F32", 4, nullptr, nullptr},
    {"BF16", 2, bf16_to_float, float_to_bf16},
    {"F16", 2, f16_to_float, float_to_f16},
};

}  // namespace

const Conversion& conversion_of(const DType& dtype) {
  for (const Conversion& conversion : conversions) {
    if (dtype.name == conversion.name) return conversion;
  }
  throw UserError("tensors of type " + dtype.name + " cannot be merged", "supported types: F32, F16, BF16");
}

void load_elements(const Conversion& conversion, std::span<const std::byte> from, float* out) {
  if (!conversion.load) {
    if (!from.empty()) std::memcpy(out, from.data(), from.size());
    return;
  }
  alignas(64) uint16_t stored[block_elements];
  alignas(64) float values[block_elements];
  for (size_t at = 0; at < from.size() / 2; at += block_elements) {
    const size_t n = std::min(block_elements, from.size() / 2 - at);
    std::memcpy(stored, from.data() + 2 * at, 2 * n);
    if (n < block_elements) std::memset(stored + n, 0, 2 * (block_elements - n));
    conversion.load(stored, n == block_elements ? out + at : values);
    if (n < block_elements) std::memcpy(out + at, values, sizeof(float) * n);
  }
}

void store_elements(const Conversion& conversion, const float* from, std::span<std::byte> out) {
  if (!conversion.store) {
    if (!out.empty()) std::memcpy(out.data(), from, out.size());
    return;
  }
  alignas(64) uint16_t stored[block_elements];
  alignas(64) float values[block_elements];
  for (size_t at = 0; at < out.size() / 2; at += block_elements) {
    const size_t n = std::min(block_elements, out.size() / 2 - at);
    if (n < block_elements) {
      std::memset(values, 0, sizeof values);
      std::memcpy(values, from + at, sizeof(float) * n);
    }
    conversion.store(n == block_elements ? from + at : values, stored);
    std::memcpy(out.data() + 2 * at, stored, 2 * n);
  }
}

}  // namespace hcsmoe
