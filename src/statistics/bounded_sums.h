#pragma once
// Order-free sums of many float32 matrices whose largest possible sum is known beforehand: one int64 a sum, half of what FixedPointSums
// takes, for the Gram matrices of reconstruction.

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "hcsmoe/error.h"
#include "hcsmoe/ranks.h"

namespace hcsmoe {

class BoundedSums {
 public:
  /// bound: no addend and no sum over all ranks is larger in magnitude. The same on every rank. buffer: where the sums are, kept for the
  /// next ones.
  BoundedSums(int64_t sums, double bound, std::vector<int64_t>& buffer) : units_(buffer) {
    buffer.assign(static_cast<size_t>(sums), 0);
    if (!std::isfinite(bound)) throw Error("a Gram matrix is not finite: the checkpoint's weights overflow, or are damaged");
    int exponent = 0;
    std::frexp(bound, &exponent);            // bound < 2^exponent
    shift_ = bound > 0 ? 50 - exponent : 0;  // a sum is below 2^50 units, which the kernel's rounding needs
    unit_ = std::ldexp(1.0, -shift_);
  }

  /// What quantised_add (forward/row_kernels.h) multiplies by.
  double scale() const { return std::ldexp(1.0, shift_); }
  int64_t* units() { return units_.data(); }
  void all_reduce(const Ranks& ranks) { ranks.all_reduce_sum(units_); }
  double value(int64_t i) const { return static_cast<double>(units_[static_cast<size_t>(i)]) * unit_; }

 private:
  std::vector<int64_t>& units_;
  int shift_ = 0;
  double unit_ = 1;
};

}  // namespace hcsmoe
