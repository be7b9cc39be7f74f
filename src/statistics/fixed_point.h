#pragma once
// Sums that do not depend on the order of adding, so that neither ranks nor threads nor the way sequences are dealt can change a bit of the
// result. A value is a pair of integers: whole part and fraction in units of 2^-40. Integer addition is associative; MPI and NCCL both
// sum int64. Each addend is rounded once, to 2^-40; nothing is rounded afterwards. No bound has to be known beforehand.

#include <cmath>
#include <cstdint>
#include <span>

#include "hcsmoe/error.h"

namespace hcsmoe {

inline constexpr int fraction_bits = 40;
/// Addends that row kernels quantise themselves: units of 2^-30 (see forward/row_kernels.h).
inline constexpr int kernel_bits = 30;
/// Larger addends are refused, so that 2^20 of them cannot overflow.
inline constexpr double largest_addend = 4.0e12;

/// A view of n sums in an int64 buffer: n whole parts, then n fractions.
class FixedPointSums {
 public:
  FixedPointSums() = default;
  explicit FixedPointSums(std::span<int64_t> buffer)
      : FixedPointSums(buffer.size() / 2, buffer.data(), buffer.data() + buffer.size() / 2) {}
  FixedPointSums(size_t sums, int64_t* whole, int64_t* fraction) : n_(sums), whole_(whole), fraction_(fraction) {}
  static size_t buffer_size(size_t sums) { return 2 * sums; }

  size_t size() const { return n_; }

  void add(size_t i, double value) {
    if (!(std::fabs(value) < largest_addend)) throw Error("a statistic is not finite, or too large to be summed: " + std::to_string(value));
    const double below = std::floor(value);
    whole_[i] += static_cast<int64_t>(below);
    fraction_[i] += std::llrint((value - below) * static_cast<double>(int64_t{1} << fraction_bits));
  }

  /// A partial sum in units of 2^-30.
  void add_kernel_units(size_t i, int64_t units) {
    whole_[i] += units >> kernel_bits;
    fraction_[i] += (units & ((int64_t{1} << kernel_bits) - 1)) << (fraction_bits - kernel_bits);
  }

  void add(const FixedPointSums& other) {
    for (size_t i = 0; i < n_; ++i) {
      whole_[i] += other.whole_[i];
      fraction_[i] += other.fraction_[i];
    }
  }

  double value(size_t i) const { return static_cast<double>(whole_[i]) + std::ldexp(static_cast<double>(fraction_[i]), -fraction_bits); }

 private:
  size_t n_ = 0;
  int64_t* whole_ = nullptr;
  int64_t* fraction_ = nullptr;
};

}  // namespace hcsmoe
