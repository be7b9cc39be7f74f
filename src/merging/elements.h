#pragma once
// Rows of elements of a checkpoint's type to float32 and back. Bytes may begin at any address: a safetensors file aligns nothing.

#include <cstddef>
#include <cstdint>
#include <span>

#include "hcsmoe/checkpoint.h"

namespace hcsmoe {

struct Conversion {
  const char* name;
  size_t bytes;                                  // an element
  void (*load)(const uint16_t* in, float* out);  // a block (conversions.h); null: float32, nothing to convert
  void (*store)(const float* in, uint16_t* out);
};
/// UserError that names the types that can be merged.
const Conversion& conversion_of(const DType&);

void load_elements(const Conversion&, std::span<const std::byte> from, float* out);
void store_elements(const Conversion&, const float* from, std::span<std::byte> out);

}  // namespace hcsmoe
