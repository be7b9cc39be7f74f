#include "forward/rotary.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/pow.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "forward/products.h"

namespace hcsmoe {
namespace {

/// The channel pair that turns `rotations` times over the original context (YaRN, arXiv 2309.00071, section 3.2).
double channel_of(double rotations, const Rope& rope, int64_t head_size) {
  const double positions = static_cast<double>(rope.original_max_positions);
  return static_cast<double>(head_size) * std::log(positions / (rotations * 2 * std::numbers::pi)) / (2 * std::log(rope.theta));
}

at::Tensor inverse_frequencies(const Rope& rope, int64_t head_size, int64_t positions) {
  const auto C = static_cast<double>(head_size);
  double base = rope.theta;
  if (rope.scaling == Rope::Scaling::dynamic) {
    const auto trained = static_cast<double>(rope.original_max_positions);
    const double length = std::max(static_cast<double>(positions), trained);
    base *= std::pow(rope.factor * length / trained - (rope.factor - 1), C / (C - 2));
  }
  const at::Tensor exponent = at::arange(0, head_size, 2, at::TensorOptions().dtype(at::kLong)).to(at::kFloat).div(C);
  const at::Tensor turns = at::pow(base, exponent);  // [C/2]
  at::Tensor inverse = turns.reciprocal();
  if (rope.scaling == Rope::Scaling::linear) return inverse.div(rope.factor);
  if (rope.scaling != Rope::Scaling::yarn) return inverse;

  double low = channel_of(rope.beta_fast, rope, head_size), high = channel_of(rope.beta_slow, rope, head_size);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, C - 1);
  if (low == high) high += 0.001;
  const at::Tensor ramp = at::arange(0, head_size / 2, at::TensorOptions().dtype(at::kFloat)).sub(low).div(high - low).clamp(0, 1);
  const at::Tensor stretched = turns.mul(rope.factor).reciprocal();
  const at::Tensor keep = ramp.neg().add(1);  // 1: the frequency as trained, 0: stretched by the factor
  return stretched.mul(keep.neg().add(1)).add(inverse.mul(keep));
}

}  // namespace

RotaryTable rotary_table(const Rope& rope, int64_t rotary_size, int64_t positions, at::Device device) {
  const at::Tensor inverse = inverse_frequencies(rope, rotary_size, positions);
  const at::Tensor position = at::arange(0, positions, at::TensorOptions().dtype(at::kFloat));
  const at::Tensor angle = position.unsqueeze(1).mul(inverse.unsqueeze(0));  // [T, C/2]
  // libtorch's cos and sin differ in the last bit between vector body and tail, whose place depends on the number of threads: ours do not.
  RotaryTable table{angle.clone(), angle.clone()};
  auto* cos = data<float>(table.cos);
  auto* sin = data<float>(table.sin);
  const auto factor = static_cast<float>(rope.attention_factor);
  for (int64_t i = 0; i < angle.numel(); ++i) {
    const auto radians = static_cast<double>(cos[i]);
    cos[i] = static_cast<float>(std::cos(radians)) * factor;
    sin[i] = static_cast<float>(std::sin(radians)) * factor;
  }
  return {table.cos.to(device), table.sin.to(device)};
}

void rotate(float* row, int64_t heads, int64_t head_size, int64_t rotary_size, bool interleaved, const float* cos, const float* sin) {
  const int64_t half = rotary_size / 2;
  for (int64_t h = 0; h < heads; ++h) {
    float* __restrict a = row + h * head_size;
    if (interleaved) {
      for (int64_t c = 0; c < half; ++c) {
        const float x = a[2 * c], y = a[2 * c + 1];
        a[2 * c] = x * cos[c] - y * sin[c];
        a[2 * c + 1] = y * cos[c] + x * sin[c];
      }
      continue;
    }
    float* __restrict b = a + half;
    for (int64_t c = 0; c < half; ++c) {
      const float x = a[c], y = b[c];
      a[c] = x * cos[c] - y * sin[c];
      b[c] = y * cos[c] + x * sin[c];
    }
  }
}

}  // namespace hcsmoe
