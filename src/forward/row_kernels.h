#pragma once
// Loops over rows that run between the matrix products, on CPUs. Each row's result depends on that row alone: not on its place in a block,
// on its neighbours, on the number of threads, or on the vector width of the machine (no fused multiply-add, fixed numbers of partial sums,
// an exp of our own instead of a library's whose vector body and scalar tail differ). Floating data come as float or as bfloat16 bits
// (uint16_t).

#include <cstdint>

namespace hcsmoe {

/// h = gate / (1 + exp(-gate)) * up, written over gate. [rows, width]
void gated_units(float* gate, const float* up, int64_t rows, int64_t width);
void gated_units(uint16_t* gate, const uint16_t* up, int64_t rows, int64_t width);

/// The same, and sums[c] += sum over rows of h[r][c] in units of 2^-30, before h is rounded to bfloat16. At most 1024 rows a call.
/// Returns false if a value is not finite or >= 2^21.
[[nodiscard]] bool gated_units_summed(float* gate, const float* up, int64_t rows, int64_t width, int64_t* sums);
[[nodiscard]] bool gated_units_summed(uint16_t* gate, const uint16_t* up, int64_t rows, int64_t width, int64_t* sums);

/// One row, with a = gate / (1 + exp(-gate)): value = weight * a * up, and its derivatives by gate and by up.
void gated_slopes(const float* gate, const float* up, float weight, int64_t width, float* value, float* by_gate, float* by_up);

/// sums[i][j] += z[i] z[j] for j >= i, in units of 2^-30: one row of `width`, at most 1024 calls between clearing. Returns false if a
/// product is not finite or >= 2^21.
[[nodiscard]] bool outer_product_summed(const float* z, int64_t width, int64_t* sums);

/// out[i] = a[i] b[i]; out[i] = a[i] out[i] + b[i] y[i].
void multiply(const float* a, const float* b, int64_t n, float* out);
void multiply_and_add(const float* a, const float* b, const float* y, int64_t n, float* out);

/// sums[i] += round(x[i] * scale), for |x[i] * scale| < 2^51.
void quantised_add(const float* x, int64_t n, double scale, int64_t* sums);
void quantised_add(const uint16_t* x, int64_t n, double scale, int64_t* sums);

/// The largest |x[i]|; NaN and infinity give infinity.
float largest_magnitude(const float* x, int64_t n);

/// out = x / sqrt(mean(x^2) + epsilon) * weight: one row of `width`. (RMSNorm, arXiv 1910.07467)
void rms_norm(const float* x, const float* weight, double epsilon, int64_t width, float* out);

/// out += factor * y: one row. Returns |y|_2^2 as double.
double add_scaled(const float* y, float factor, int64_t width, float* out);
double add_scaled(const uint16_t* y, float factor, int64_t width, float* out);

/// |x|_2^2 and |x - y|_2^2 in double with 16 partial sums.
double squared(const float* x, int64_t width);
double squared_difference(const float* x, const float* y, int64_t width);

/// sum of a * b in double with 16 partial sums.
double dot(const float* a, const double* b, int64_t width);
double dot_bfloat16(const uint16_t* a, const double* b, int64_t width);
double dot(const float* a, const float* b, int64_t width);

void to_bfloat16(const float* in, int64_t n, uint16_t* out);  // round to nearest even
void to_float(const uint16_t* in, int64_t n, float* out);

}  // namespace hcsmoe
