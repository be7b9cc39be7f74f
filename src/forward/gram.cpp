#include "forward/gram.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "forward/products.h"

namespace hcsmoe {
namespace {

constexpr int64_t chunk = 4096;  // elements of all vectors that are multiplied at a time

}  // namespace

std::string gram_of_parts(int64_t rows, int64_t elements, int64_t first, int64_t step, const FillElements& fill) {
  const int64_t part = padded(blocks_of(elements, gram_parts), chunk);  // elements
  const int64_t count = first < gram_parts ? (gram_parts - first + step - 1) / step : 0;
  const auto bytes = static_cast<size_t>(rows * rows) * sizeof(double);
  std::string result(static_cast<size_t>(count) * bytes, '\0');
  for_each_task(count, [&](int64_t i, int) {
    const int64_t begin = (first + i * step) * part, end = std::min(elements, begin + part);
    const auto type = at::TensorOptions().dtype(at::kDouble);
    at::Tensor values = at::empty({rows, chunk}, type), sum = at::zeros({rows, rows}, type);
    for (int64_t from = begin; from < end; from += chunk) {
      const int64_t n = std::min(chunk, end - from);
      if (n < chunk) values.zero_();
      for (int64_t row = 0; row < rows; ++row) fill(row, from, n, values[row].narrow(0, 0, n));
      sum.addmm_(values, values.t());
    }
    std::memcpy(result.data() + static_cast<size_t>(i) * bytes, sum.const_data_ptr(), bytes);
  });
  return result;
}

at::Tensor sum_of_matrices(const std::vector<std::string>& holders, int64_t rows, int64_t matrices) {
  at::Tensor sum = at::zeros({rows, rows}, at::TensorOptions().dtype(at::kDouble));
  const auto P = static_cast<int64_t>(holders.size()), values = rows * rows;
  for (int64_t m = 0; m < matrices; ++m) {
    const auto* matrix = reinterpret_cast<const double*>(holders[static_cast<size_t>(m % P)].data()) + m / P * values;
    for (int64_t i = 0; i < values; ++i) data<double>(sum)[i] += matrix[i];
  }
  return sum;
}

at::Tensor cka_of(const at::Tensor& hsic) {
  const int64_t E = hsic.size(0);
  at::Tensor cka = at::empty({E, E}, at::TensorOptions().dtype(at::kDouble));
  const auto* h = const_data<double>(hsic);
  for (int64_t e = 0; e < E; ++e) {
    for (int64_t f = e; f < E; ++f) {
      const double own = h[e * E + e], other = h[f * E + f];
      const double value = own > 0 && other > 0 ? h[e * E + f] / (std::sqrt(own) * std::sqrt(other)) : own > 0 || other > 0 ? 0 : 1;
      data<double>(cka)[e * E + f] = data<double>(cka)[f * E + e] = e == f ? 1 : std::clamp(value, 0.0, 1.0);
    }
  }
  return cka;
}

}  // namespace hcsmoe
