#include "plan/expert_values.h"

#include <algorithm>
#include <cmath>

#include "hcsmoe/error.h"
#include "plan/cluster_weights.h"

namespace hcsmoe {

std::span<const double> expert_values(const ExpertStatistics& statistics, const at::Tensor& tensor, const std::string& name,
                                      int64_t values) {
  const std::string layer = "layer " + std::to_string(statistics.layer);
  if (!tensor.defined() || tensor.scalar_type() != at::kDouble || tensor.numel() != values || !tensor.is_contiguous()) {
    throw UserError("the statistics of " + layer + " have no " + name + " of " + std::to_string(statistics.experts) + " experts",
                    "collect them again");
  }
  const std::span<const double> result(tensor.const_data_ptr<double>(), static_cast<size_t>(values));
  const auto bad = std::find_if_not(result.begin(), result.end(), [](double x) { return std::isfinite(x); });
  if (bad != result.end()) {
    const int64_t expert = (bad - result.begin()) / (values / statistics.experts);
    throw UserError(layer + ": the " + name + " of expert " + std::to_string(expert) + " is not finite",
                    "look for inf or nan in the checkpoint's weights of this layer, or compute in float32 (device.dtype)");
  }
  return result;
}

std::vector<double> mean_outputs(const ExpertStatistics& statistics) {
  const std::string layer = "layer " + std::to_string(statistics.layer);
  const at::Tensor& sum = statistics.output_sum;
  if (!sum.defined() || sum.scalar_type() != at::kDouble || sum.dim() != 2 || sum.size(0) != statistics.experts || !sum.is_contiguous()) {
    throw UserError("the statistics of " + layer + " have no output_sum, which the feature expert_output is made of", "collect them again");
  }
  if (statistics.tokens < 1) throw UserError("the statistics of " + layer + " are of no tokens", "collect them again");
  const double* values = sum.const_data_ptr<double>();
  std::vector<double> features(values, values + sum.numel());
  for (double& x : features) x /= static_cast<double>(statistics.tokens);
  for (size_t i = 0; i < features.size(); i++) {
    if (!std::isfinite(features[i])) {
      throw UserError(layer + ": the mean output of expert " + std::to_string(static_cast<int64_t>(i) / sum.size(1)) + " is not finite",
                      "look for inf or nan in the checkpoint's weights of this layer, or compute in float32 (device.dtype)");
    }
  }
  return features;
}

std::vector<double> mean_over_routed(const ExpertStatistics& statistics, std::span<const double> value) {
  const std::span<const int64_t> counts = routed_counts(statistics);
  std::vector<double> result;
  for (size_t e = 0; e < counts.size(); e++) result.push_back(counts[e] == 0 ? 0 : value[e] / static_cast<double>(counts[e]));
  return result;
}

double cosine(double own, double other, double product) {
  return own > 0 && other > 0 ? product / std::sqrt(own * other) : own > 0 || other > 0 ? 0 : 1;
}

std::vector<double> logit_cosines(const ExpertStatistics& statistics) {
  const int64_t E = statistics.experts;
  const auto gram = expert_values(statistics, statistics.router_logit_gram, "router_logit_gram", E * E);
  std::vector<double> cosines(static_cast<size_t>(E * E));
  for (int64_t e = 0; e < E; e++) {
    for (int64_t f = 0; f < E; f++) cosines[e * E + f] = cosine(gram[e * E + e], gram[f * E + f], gram[e * E + f]);
  }
  return cosines;
}

std::span<const float> sample_values(const ExpertStatistics& statistics, const at::Tensor& tensor, const std::string& name,
                                     int64_t columns) {
  const std::string layer = "layer " + std::to_string(statistics.layer);
  if (!tensor.defined() || tensor.scalar_type() != at::kFloat || tensor.dim() != 2 || tensor.size(0) < 1 || tensor.size(1) != columns ||
      !tensor.is_contiguous()) {
    throw UserError("the statistics of " + layer + " have no " + name + " of " + std::to_string(statistics.experts) + " experts",
                    "collect them again");
  }
  const std::span<const float> values(tensor.const_data_ptr<float>(), static_cast<size_t>(tensor.numel()));
  const auto bad = std::find_if_not(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
  if (bad != values.end()) {
    throw UserError(layer + ": the " + name + " of sampled token " + std::to_string((bad - values.begin()) / columns) + " is not finite",
                    "look for inf or nan in the checkpoint's weights of this layer, or compute in float32 (device.dtype)");
  }
  return values;
}

std::vector<double> sampled_output_gram(const ExpertStatistics& statistics) {
  const int64_t E = statistics.experts, pairs = E * (E + 1) / 2;
  const auto tokens = sample_values(statistics, statistics.token_output_gram, "token_output_gram", pairs);
  std::vector<double> sum(static_cast<size_t>(pairs), 0.0), gram(static_cast<size_t>(E * E));
  for (auto token = tokens.begin(); token != tokens.end(); token += pairs) {
    for (int64_t i = 0; i < pairs; i++) sum[i] += static_cast<double>(token[i]);
  }
  auto next = sum.begin();
  for (int64_t e = 0; e < E; e++) {
    for (int64_t f = e; f < E; f++, next++) gram[e * E + f] = gram[f * E + e] = *next;
  }
  return gram;
}

}  // namespace hcsmoe
