#include "merging/conversions.h"

#include <bit>

#include "support/vector_width.h"

// Loops have a constant number of steps, restricted pointers, and no floating-point operation under a condition: GCC then vectorises
// them at -O2 too.

namespace hcsmoe {
namespace {

constexpr uint32_t sign_bit = 0x80000000;
constexpr uint32_t float_infinity = 0x7f800000;
constexpr uint32_t f16_overflow = 0x477ff000;      // 65520, half way from F16's largest number to the next power of two
constexpr uint32_t f16_least_normal = 0x38800000;  // 2^-14
constexpr uint32_t rebias = (127 - 15) << 23;      // from F16's exponents to float's

}  // namespace

HCSMOE_FOR_EACH_VECTOR_WIDTH
void bf16_to_float(const uint16_t* __restrict in, float* __restrict out) {
  for (size_t i = 0; i < block_elements; i++) out[i] = std::bit_cast<float>(static_cast<uint32_t>(in[i]) << 16);
}

HCSMOE_FOR_EACH_VECTOR_WIDTH
void f16_to_float(const uint16_t* __restrict in, float* __restrict out) {
  for (size_t i = 0; i < block_elements; i++) {
    const uint32_t bits = in[i];
    const uint32_t magnitude = bits & 0x7fff;
    // A subnormal is made as 2^-14 plus its fraction, then 2^-14 is taken off.
    const uint32_t excess = magnitude < 0x0400 ? f16_least_normal : 0;
    const uint32_t implied = magnitude < 0x0400 ? 1U << 23 : 0;
    const float value = std::bit_cast<float>((magnitude << 13) + rebias + implied) - std::bit_cast<float>(excess);
    const uint32_t infinite = magnitude >= 0x7c00 ? float_infinity : 0;
    out[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(value) | infinite | (bits & 0x8000) << 16);
  }
}

HCSMOE_FOR_EACH_VECTOR_WIDTH
void float_to_bf16(const float* __restrict in, uint16_t* __restrict out) {
  for (size_t i = 0; i < block_elements; i++) {
    const uint32_t bits = std::bit_cast<uint32_t>(in[i]);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out[i] = static_cast<uint16_t>((bits & ~sign_bit) > float_infinity ? 0x7fc0 : rounded);
  }
}

HCSMOE_FOR_EACH_VECTOR_WIDTH
void float_to_f16(const float* __restrict in, uint16_t* __restrict out) {
  for (size_t i = 0; i < block_elements; i++) {
    const uint32_t bits = std::bit_cast<uint32_t>(in[i]);
    const uint32_t magnitude = bits & ~sign_bit;
    // The last place of 0.5 is F16's smallest subnormal: the addition rounds a subnormal to it.
    const uint32_t half = magnitude < f16_least_normal ? std::bit_cast<uint32_t>(0.5F) : 0;
    const uint32_t shifted = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + std::bit_cast<float>(half));
    const uint32_t normal = (magnitude - rebias + 0x0fff + ((magnitude >> 13) & 1)) >> 13;
    uint32_t result = magnitude < f16_least_normal ? shifted - half : normal;
    result = magnitude >= f16_overflow ? 0x7c00 : result;
    result = magnitude > float_infinity ? 0x7e00 : result | (bits & sign_bit) >> 16;
    out[i] = static_cast<uint16_t>(result);
  }
}

HCSMOE_FOR_EACH_VECTOR_WIDTH
void multiply(const float* __restrict in, float weight, float* __restrict out) {
  for (size_t i = 0; i < block_elements; i++) out[i] = weight * in[i];
}

HCSMOE_FOR_EACH_VECTOR_WIDTH
void add_product(const float* __restrict in, float weight, float* __restrict sums) {
  for (size_t i = 0; i < block_elements; i++) sums[i] += weight * in[i];
}

}  // namespace hcsmoe
