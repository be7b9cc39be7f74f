#include "merging/alignment.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <string>

#include "forward/products.h"
#include "forward/row_kernels.h"
#include "hcsmoe/error.h"
#include "merging/assignment.h"

namespace hcsmoe {
namespace {

at::Tensor as_float(const at::Tensor& tensor) { return tensor.to(at::kFloat); }
at::Tensor rows_of(const at::Tensor& weight, int64_t first, int64_t n) { return as_float(weight.narrow(0, first, n)); }
at::Tensor columns_of(const at::Tensor& weight, int64_t first, int64_t n) { return as_float(weight.narrow(1, first, n)); }

/// Units first .. first+n of an expert, in float32, and the norm of each unit's weights [n].
struct UnitWeights {
  at::Tensor gate, up, down, norm;
  UnitWeights(const ExpertWeights& expert, int64_t first, int64_t n)
      : gate(rows_of(expert.gate, first, n)), up(rows_of(expert.up, first, n)), down(columns_of(expert.down, first, n)) {
    at::Tensor squares = gate.square().sum(1);
    squares.add_(up.square().sum(1)).add_(down.square().sum(0));
    norm = squares.sqrt().clamp_min(1e-12);
  }
};

}  // namespace

at::Tensor unit_activations(const at::Tensor& x, const ExpertWeights& expert) {
  const int64_t S = x.size(0), F = expert.gate.size(0);
  at::Tensor h = at::empty({S, F}, at::TensorOptions().dtype(at::kFloat));
  for (int64_t first = 0; first < F; first += unit_tile) {
    const int64_t n = std::min(unit_tile, F - first);
    at::Tensor gate = x.mm(rows_of(expert.gate, first, n).t());  // [S, n]
    const at::Tensor up = x.mm(rows_of(expert.up, first, n).t());
    gated_units(data<float>(gate), const_data<float>(up), S, n);
    h.narrow(1, first, n).copy_(gate);
  }
  return h;
}

at::Tensor standardised(const at::Tensor& h) {
  const at::Tensor centred = h.sub(h.mean(0, true));
  if (h.size(0) < 2) return centred.zero_();
  const at::Tensor deviation = centred.square().sum(0, true).div_(static_cast<double>(h.size(0) - 1)).sqrt_();
  return centred.div_(deviation.add(1e-6));
}

at::Tensor unit_correlations(const at::Tensor& a, const at::Tensor& b) { return a.t().mm(b).div_(static_cast<double>(a.size(0))); }

void add_weight_cosines(const ExpertWeights& a, const ExpertWeights& b, at::Tensor& scores) {
  const int64_t F = a.gate.size(0);
  for (int64_t i = 0; i < F; i += unit_tile) {
    const UnitWeights mine(a, i, std::min(unit_tile, F - i));
    for (int64_t j = 0; j < F; j += unit_tile) {
      const UnitWeights other(b, j, std::min(unit_tile, F - j));
      at::Tensor product = mine.gate.mm(other.gate.t());  // [units of a, units of b]
      product.addmm_(mine.up, other.up.t());
      product.addmm_(mine.down.t(), other.down);
      product.div_(mine.norm.unsqueeze(1)).div_(other.norm.unsqueeze(0));
      scores.narrow(0, i, product.size(0)).narrow(1, j, product.size(1)).add_(product);
    }
  }
}

std::vector<int32_t> matched_units(const ExpertWeights& a, const at::Tensor& a_standardised, const ExpertWeights& b, const at::Tensor& x) {
  const int64_t F = a.gate.size(0);
  at::Tensor scores = unit_correlations(a_standardised, standardised(unit_activations(x, b)));
  add_weight_cosines(a, b, scores);
  const std::vector<int32_t> order = best_assignment({const_data<float>(scores), static_cast<size_t>(scores.numel())}, F);
  std::vector<int32_t> target(order.size());
  for (size_t u = 0; u < order.size(); ++u) target[static_cast<size_t>(order[u])] = static_cast<int32_t>(u);
  return target;
}

std::vector<int32_t> most_correlated_units(const at::Tensor& a_standardised, const ExpertWeights& b, const at::Tensor& x) {
  const at::Tensor scores = unit_correlations(a_standardised, standardised(unit_activations(x, b)));
  const int64_t F = scores.size(0);
  std::vector<int32_t> target(static_cast<size_t>(F), 0);
  std::vector<float> most(const_data<float>(scores), const_data<float>(scores) + F);
  for (int64_t i = 1; i < F; ++i) {
    const float* row = const_data<float>(scores) + i * F;
    for (size_t j = 0; j < most.size(); ++j) {
      if (!(row[j] > most[j])) continue;
      most[j] = row[j];
      target[j] = static_cast<int32_t>(i);
    }
  }
  return target;
}

}  // namespace hcsmoe
