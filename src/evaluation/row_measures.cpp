#include "evaluation/row_measures.h"

#include <algorithm>
#include <cmath>

namespace hcsmoe {
namespace {

/// Over the logits z seen so far: log sum exp z = highest + log(sum), and the likeliest token.
struct Running {
  double highest = -INFINITY, sum = 0;
  int64_t top = -1;

  /// Takes a chunk's highest logit; returns what earlier sums must be multiplied with.
  double raise(const float* z, int64_t n, int64_t first) {
    const float* const most = std::max_element(z, z + n);
    if (!(static_cast<double>(*most) > highest)) return 1;
    const double factor = std::exp(highest - static_cast<double>(*most));
    highest = static_cast<double>(*most);
    top = first + (most - z);
    sum *= factor;
    return factor;
  }
  double log_sum_exp() const { return highest + std::log(sum); }
};

struct Row {
  Running model, reference;
  double cross = 0;  // sum of exp(z - reference.highest) (z - y), z the reference's logits and y the model's
};

}  // namespace

RowMeasures measure_rows(const FinalRows& model, const FinalRows* reference, const RowTargets& targets, int threads) {
  const auto N = static_cast<size_t>(model.count);
  std::vector<Row> rows(N);
  RowMeasures result;
  result.log_probability.resize(targets.tokens.size());  // logits, until their row's log sum exp is known
  std::vector<const FinalRows*> models = {&model};
  if (reference) models.push_back(reference);

  for_each_logits(models, threads, [&](int64_t row, int64_t first, int64_t n, const std::vector<const float*>& logits) {
    const auto r = static_cast<size_t>(row);
    Row& run = rows[r];
    const float* y = logits[0];
    run.model.raise(y, n, first);
    for (int64_t i = 0; i < n; ++i) run.model.sum += std::exp(static_cast<double>(y[i]) - run.model.highest);
    for (size_t t = targets.first[r]; t < targets.first[r + 1]; ++t) {
      const int64_t token = targets.tokens[t];
      if (token >= first && token < first + n) result.log_probability[t] = static_cast<double>(y[token - first]);
    }
    if (!reference) return;
    const float* z = logits[1];
    run.cross *= run.reference.raise(z, n, first);
    for (int64_t i = 0; i < n; ++i) {
      const double p = std::exp(static_cast<double>(z[i]) - run.reference.highest);
      run.reference.sum += p;
      run.cross += p * (static_cast<double>(z[i]) - static_cast<double>(y[i]));
    }
  });

  for (size_t r = 0; r < N; ++r) {
    const double log_sum_exp = rows[r].model.log_sum_exp();
    for (size_t t = targets.first[r]; t < targets.first[r + 1]; ++t) result.log_probability[t] -= log_sum_exp;
    if (!reference) continue;
    const Running& from = rows[r].reference;
    result.divergence.push_back(std::max(0.0, rows[r].cross / from.sum - from.log_sum_exp() + log_sum_exp));
    result.agrees.push_back(from.top == rows[r].model.top);
  }
  return result;
}

}  // namespace hcsmoe
