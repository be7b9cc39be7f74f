#pragma once
// Blocks of BF16 and F16 to float32 and back, in integer arithmetic that every compiler vectorises. To 16 bits: round to nearest, ties to
// even; too large becomes infinity, every NaN the one quiet NaN 0x7fc0 or 0x7e00.

#include <cstddef>
#include <cstdint>

namespace hcsmoe {

inline constexpr size_t block_elements = 2048;  // of every pointer below

void bf16_to_float(const uint16_t* in, float* out);
void f16_to_float(const uint16_t* in, float* out);
void float_to_bf16(const float* in, uint16_t* out);
void float_to_f16(const float* in, uint16_t* out);

void multiply(const float* in, float weight, float* out);      // out = weight * in
void add_product(const float* in, float weight, float* sums);  // sums += weight * in, product and sum rounded each

}  // namespace hcsmoe
