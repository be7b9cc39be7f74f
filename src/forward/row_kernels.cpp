// Compiled with -O3 -ffp-contract=off (src/CMakeLists.txt): the compiler vectorises these loops for each listed instruction set, and all of
// them compute the same bits.

#include "forward/row_kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "support/vector_width.h"

#define HCSMOE_INLINE inline __attribute__((always_inline))

namespace hcsmoe {
namespace {

constexpr int64_t tile = 512;  // columns summed at a time: 4 KiB of int64

HCSMOE_INLINE float load(float x) { return x; }
HCSMOE_INLINE float load(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }
HCSMOE_INLINE uint16_t round_to_bfloat16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
HCSMOE_INLINE void store(float x, float& out) { out = x; }
HCSMOE_INLINE void store(float x, uint16_t& out) { out = round_to_bfloat16(x); }

/// exp (finite for every x, NaN too) by range reduction and a polynomial of degree 6 (the single-precision minimax coefficients of the
/// Cephes library), within 2 ulp.
HCSMOE_INLINE float exponential(float x) {
  // Between -87 and 88, by the order of the bits as signed and as unsigned numbers: the compiler makes a comparison of floats several
  // paths, with a division each.
  x = std::bit_cast<float>(std::min(std::bit_cast<int32_t>(x), std::bit_cast<int32_t>(88.0f)));
  x = std::bit_cast<float>(std::min(std::bit_cast<uint32_t>(x), std::bit_cast<uint32_t>(-87.0f)));
  const float n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // nearest whole number
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

HCSMOE_INLINE float gated(float gate, float up) { return gate / (1.0f + exponential(-gate)) * up; }

template <class T>
HCSMOE_INLINE void gated_units_body(T* __restrict gate, const T* __restrict up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(gated(load(gate[i]), load(up[i])), gate[i]);
}

constexpr double magic = 6755399441055744.0;
/// round(x) for |x| < 2^51: x + 1.5 * 2^52 holds it in the low bits of its mantissa.
HCSMOE_INLINE int64_t nearest(double x) { return std::bit_cast<int64_t>(x + magic) - std::bit_cast<int64_t>(magic); }
/// round(x * 2^30) for |x| < 2^21.
HCSMOE_INLINE int64_t units(double x) { return nearest(x * 1073741824.0); }
constexpr double largest_unit_value = 2097152.0;

template <class T>
HCSMOE_INLINE float gated_in_place(T& gate, T up) {
  const float h = gated(load(gate), load(up));
  store(h, gate);
  return h;
}
/// Bits of |x|, which are ordered like |x|, NaN above all.
HCSMOE_INLINE uint32_t magnitude(float x) { return std::bit_cast<uint32_t>(x) & 0x7fffffffu; }
/// units(x), before the constant of nearest() is taken from it.
HCSMOE_INLINE uint64_t raw_units(float x) { return std::bit_cast<uint64_t>(static_cast<double>(x * 1073741824.0f) + magic); }

template <class T>
HCSMOE_INLINE bool gated_units_summed_body(T* gate, const T* up, int64_t rows, int64_t width, int64_t* sums) {
  uint32_t largest = 0;
  for (int64_t first = 0; first < width; first += tile) {
    const int64_t n = width - first < tile ? width - first : tile;
    uint64_t total[tile] = {};
    // Two rows at a time: one value's operations hang on each other, another row's fill the gaps.
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2) {
      T* __restrict g = gate + r * width + first;
      T* __restrict g2 = gate + (r + 1) * width + first;
      const T* __restrict u = up + r * width + first;
      const T* __restrict u2 = up + (r + 1) * width + first;
      for (int64_t c = 0; c < n; ++c) {
        const float h = gated_in_place(g[c], u[c]), h2 = gated_in_place(g2[c], u2[c]);
        largest = std::max(largest, std::max(magnitude(h), magnitude(h2)));
        total[c] += raw_units(h) + raw_units(h2);
      }
    }
    if (r < rows) {
      T* __restrict g = gate + r * width + first;
      const T* __restrict u = up + r * width + first;
      for (int64_t c = 0; c < n; ++c) {
        const float h = gated_in_place(g[c], u[c]);
        largest = std::max(largest, magnitude(h));
        total[c] += raw_units(h);
      }
    }
    for (int64_t c = 0; c < n; ++c) {
      sums[first + c] += static_cast<int64_t>(total[c] - static_cast<uint64_t>(rows) * std::bit_cast<uint64_t>(magic));
    }
  }
  return largest < std::bit_cast<uint32_t>(static_cast<float>(largest_unit_value));
}

template <class T>
HCSMOE_INLINE double add_scaled_body(const T* __restrict y, float factor, int64_t width, float* __restrict out) {
  double partial[16] = {};
  const int64_t whole = width / 16 * 16;
  for (int64_t i = 0; i < whole; i += 16) {
    for (int64_t j = 0; j < 16; ++j) {
      const float v = load(y[i + j]);
      out[i + j] = out[i + j] + factor * v;
      partial[j] += static_cast<double>(v) * static_cast<double>(v);
    }
  }
  for (int64_t i = whole; i < width; ++i) {
    const float v = load(y[i]);
    out[i] = out[i] + factor * v;
    partial[i - whole] += static_cast<double>(v) * static_cast<double>(v);
  }
  double sum = 0;
  for (const double p : partial) sum += p;
  return sum;
}

template <class T, class U>
HCSMOE_INLINE double dot_body(const T* __restrict a, const U* __restrict b, int64_t width) {
  double partial[16] = {};
  const int64_t whole = width / 16 * 16;
  for (int64_t i = 0; i < whole; i += 16) {
    for (int64_t j = 0; j < 16; ++j) partial[j] += static_cast<double>(load(a[i + j])) * static_cast<double>(b[i + j]);
  }
  for (int64_t i = whole; i < width; ++i) partial[i - whole] += static_cast<double>(load(a[i])) * static_cast<double>(b[i]);
  double sum = 0;
  for (const double p : partial) sum += p;
  return sum;
}

/// Sum of value(i) in double, in 16 partial sums.
template <class Value>
HCSMOE_INLINE double sum_of(int64_t width, const Value& value) {
  double partial[16] = {};
  const int64_t whole = width / 16 * 16;
  for (int64_t i = 0; i < whole; i += 16) {
    for (int64_t j = 0; j < 16; ++j) partial[j] += value(i + j);
  }
  for (int64_t i = whole; i < width; ++i) partial[i - whole] += value(i);
  double sum = 0;
  for (const double p : partial) sum += p;
  return sum;
}

}  // namespace

HCSMOE_FOR_EACH_VECTOR_WIDTH double squared(const float* x, int64_t width) {
  return sum_of(
      width, [=](int64_t i) __attribute__((always_inline)) { return static_cast<double>(x[i]) * static_cast<double>(x[i]); });
}
HCSMOE_FOR_EACH_VECTOR_WIDTH double squared_difference(const float* x, const float* y, int64_t width) {
  return sum_of(
      width, [=](int64_t i) __attribute__((always_inline)) {
        const double difference = static_cast<double>(x[i]) - static_cast<double>(y[i]);
        return difference * difference;
      });
}

HCSMOE_FOR_EACH_VECTOR_WIDTH void gated_units(float* gate, const float* up, int64_t rows, int64_t width) {
  gated_units_body(gate, up, rows * width);
}
HCSMOE_FOR_EACH_VECTOR_WIDTH void gated_units(uint16_t* gate, const uint16_t* up, int64_t rows, int64_t width) {
  gated_units_body(gate, up, rows * width);
}

HCSMOE_FOR_EACH_VECTOR_WIDTH bool gated_units_summed(float* gate, const float* up, int64_t rows, int64_t width, int64_t* sums) {
  return gated_units_summed_body(gate, up, rows, width, sums);
}
HCSMOE_FOR_EACH_VECTOR_WIDTH bool gated_units_summed(uint16_t* gate, const uint16_t* up, int64_t rows, int64_t width, int64_t* sums) {
  return gated_units_summed_body(gate, up, rows, width, sums);
}

HCSMOE_FOR_EACH_VECTOR_WIDTH void gated_slopes(const float* __restrict gate, const float* __restrict up, float weight, int64_t width,
                                               float* __restrict value, float* __restrict by_gate, float* __restrict by_up) {
  for (int64_t c = 0; c < width; ++c) {
    const float sigmoid = 1.0f / (1.0f + exponential(-gate[c])), activation = gate[c] * sigmoid;
    value[c] = weight * (activation * up[c]);
    by_gate[c] = weight * (sigmoid * (1.0f + gate[c] * (1.0f - sigmoid)) * up[c]);
    by_up[c] = weight * activation;
  }
}

HCSMOE_FOR_EACH_VECTOR_WIDTH bool outer_product_summed(const float* z, int64_t width, int64_t* sums) {
  int bad = 0;
  for (int64_t i = 0; i < width; ++i) {
    const auto zi = static_cast<double>(z[i]);
    int64_t* __restrict row = sums + i * width;
    for (int64_t j = i; j < width; ++j) {
      const double product = zi * static_cast<double>(z[j]);
      bad |= !(std::fabs(product) < largest_unit_value);
      row[j] += units(product);
    }
  }
  return bad == 0;
}

HCSMOE_FOR_EACH_VECTOR_WIDTH void multiply(const float* __restrict a, const float* __restrict b, int64_t n, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] * b[i];
}

HCSMOE_FOR_EACH_VECTOR_WIDTH void multiply_and_add(const float* __restrict a, const float* __restrict b, const float* __restrict y,
                                                   int64_t n, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] * out[i] + b[i] * y[i];
}

HCSMOE_FOR_EACH_VECTOR_WIDTH void quantised_add(const float* x, int64_t n, double scale, int64_t* sums) {
  for (int64_t i = 0; i < n; ++i) sums[i] += nearest(static_cast<double>(x[i]) * scale);
}

HCSMOE_FOR_EACH_VECTOR_WIDTH void quantised_add(const uint16_t* x, int64_t n, double scale, int64_t* sums) {
  for (int64_t i = 0; i < n; ++i) sums[i] += nearest(static_cast<double>(load(x[i])) * scale);
}

HCSMOE_FOR_EACH_VECTOR_WIDTH float largest_magnitude(const float* x, int64_t n) {
  // As bits, magnitudes are ordered like integers, NaN above infinity above all others.
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest > 0x7f800000u ? INFINITY : std::bit_cast<float>(largest);
}

HCSMOE_FOR_EACH_VECTOR_WIDTH void rms_norm(const float* x, const float* weight, double epsilon, int64_t width, float* out) {
  double partial[16] = {};
  const int64_t whole = width / 16 * 16;
  for (int64_t i = 0; i < whole; i += 16) {
    for (int64_t j = 0; j < 16; ++j) partial[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  }
  for (int64_t i = whole; i < width; ++i) partial[i - whole] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  double sum = 0;
  for (const double p : partial) sum += p;
  const auto scale = static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(width) + epsilon));
  for (int64_t i = 0; i < width; ++i) out[i] = x[i] * scale * weight[i];
}

HCSMOE_FOR_EACH_VECTOR_WIDTH double add_scaled(const float* y, float factor, int64_t width, float* out) {
  return add_scaled_body(y, factor, width, out);
}
HCSMOE_FOR_EACH_VECTOR_WIDTH double add_scaled(const uint16_t* y, float factor, int64_t width, float* out) {
  return add_scaled_body(y, factor, width, out);
}

HCSMOE_FOR_EACH_VECTOR_WIDTH double dot(const float* a, const double* b, int64_t width) { return dot_body(a, b, width); }
HCSMOE_FOR_EACH_VECTOR_WIDTH double dot_bfloat16(const uint16_t* a, const double* b, int64_t width) { return dot_body(a, b, width); }
HCSMOE_FOR_EACH_VECTOR_WIDTH double dot(const float* a, const float* b, int64_t width) { return dot_body(a, b, width); }

HCSMOE_FOR_EACH_VECTOR_WIDTH void to_bfloat16(const float* in, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = round_to_bfloat16(in[i]);
}
HCSMOE_FOR_EACH_VECTOR_WIDTH void to_float(const uint16_t* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = load(in[i]);
}

}  // namespace hcsmoe
