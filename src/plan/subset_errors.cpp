#include "plan/subset_errors.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "families/groups.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

/// The routing of one token, by whatever set of experts is left.
class TokenRouting {
 public:
  explicit TokenRouting(const RoutingRule& rule) : rule_(rule) {}

  void read(std::span<const float> logits) {
    scores_.clear();
    if (sigmoid()) {
      for (const float z : logits) scores_.push_back(1 / (1 + std::exp(-static_cast<double>(z))));
    } else {
      const double highest = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
      for (const float z : logits) scores_.push_back(std::exp(static_cast<double>(z) - highest));
    }
    if (rule_.correction.empty() && rule_.groups == 1) {
      order_by(logits, order_);
      return;
    }
    values_ = scores_;
    for (size_t e = 0; e < rule_.correction.size(); e++) values_[e] += static_cast<double>(rule_.correction[e]);
    order_by(values_, order_);
    keep_best_groups(values_, rule_);
    order_by(values_, order_in_groups_);
  }

  /// chosen, weights: [k]. left: E flags; members: those whose flag is set.
  void route(const uint8_t* left, std::span<const int32_t> members, int32_t* chosen, double* weights) const {
    const std::vector<int32_t>& order = rule_.groups > 1 && members.size() == scores_.size() ? order_in_groups_ : order_;
    double best = 0, all = 0;
    int64_t found = 0;
    for (size_t i = 0; found < rule_.top_k; i++) {
      const int32_t e = order[i];
      if (!left[e]) continue;
      chosen[found] = e;
      weights[found++] = scores_[e];
      best += scores_[e];
    }
    if (rule_.renormalise) {
      all = sigmoid() ? best + 1e-20 : best;
    } else if (sigmoid()) {
      all = 1;
    } else {
      for (const int32_t e : members) all += scores_[e];
    }
    for (int64_t j = 0; j < found; j++) weights[j] = weights[j] / all * rule_.scale;
  }

 private:
  bool sigmoid() const { return rule_.score == RoutingRule::Score::sigmoid; }

  template <class Values>
  static void order_by(const Values& values, std::vector<int32_t>& order) {
    order.resize(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return values[a] > values[b]; });
  }

  RoutingRule rule_;
  std::vector<double> scores_;            // sigmoids of logits, or their exponentials over that of the highest
  std::vector<double> values_;            // scores + correction biases
  std::vector<int32_t> order_;            // experts by what chooses them, highest first; ties towards the smaller index
  std::vector<int32_t> order_in_groups_;  // the same of the chosen groups, where there are groups
};

/// A combination of experts' outputs. At most 2k experts take part.
class Combination {
 public:
  explicit Combination(int64_t experts) : place_(static_cast<size_t>(experts), none) {}

  void clear() {
    for (const int32_t e : experts_) place_[e] = none;
    experts_.clear();
    factors_.clear();
  }

  void add(int32_t expert, double factor) {
    if (place_[expert] == none) {
      place_[expert] = static_cast<int32_t>(experts_.size());
      experts_.push_back(expert);
      factors_.push_back(0);
    }
    factors_[place_[expert]] += factor;
  }

  /// |sum of factor * output|^2. gram: of one token, the upper triangle; row_start[e]: where its row e would begin.
  double squared_norm(const float* gram, const int64_t* row_start) const {
    double sum = 0;
    for (size_t i = 0; i < experts_.size(); i++) {
      const int64_t e = experts_[i];
      double row = 0.5 * factors_[i] * static_cast<double>(gram[row_start[e] + e]);
      for (size_t j = 0; j < i; j++) {
        const int64_t f = experts_[j];
        row += factors_[j] * static_cast<double>(gram[row_start[std::min(e, f)] + std::max(e, f)]);
      }
      sum += 2 * factors_[i] * row;
    }
    return std::max(0.0, sum);
  }

 private:
  static constexpr int32_t none = -1;
  std::vector<int32_t> experts_, place_;
  std::vector<double> factors_;
};

}  // namespace

std::vector<double> subset_errors(std::span<const float> logits, std::span<const float> output_gram, int64_t experts,
                                  const RoutingRule& rule, const ExpertSets& sets) {
  const int64_t E = experts, k = rule.top_k, pairs = E * (E + 1) / 2, tokens = static_cast<int64_t>(logits.size()) / E;
  if (k < 1 || sets.size < k || sets.size > E || static_cast<int64_t>(output_gram.size()) != tokens * pairs) {
    throw Error("subset_errors: sets of " + std::to_string(sets.size) + " of " + std::to_string(E) + " experts, top-k " +
                std::to_string(k));
  }
  std::vector<int64_t> row_start;
  for (int64_t e = 0; e < E; e++) row_start.push_back(e * E - e * (e + 1) / 2);
  std::vector<uint8_t> left(static_cast<size_t>(sets.count() * E), 0), everyone(static_cast<size_t>(E), 1);
  for (int64_t s = 0; s < sets.count(); s++) {
    for (const int32_t e : sets[s]) left[s * E + e] = 1;
  }
  std::vector<int32_t> all(static_cast<size_t>(E)), own(static_cast<size_t>(k)), chosen(own);
  std::iota(all.begin(), all.end(), 0);
  std::vector<double> own_weights(static_cast<size_t>(k)), weights(own_weights), errors(static_cast<size_t>(sets.count()), 0.0);

  // Tokens outside, sets inside: a token's products stay in the first-level cache.
  TokenRouting routing(rule);
  Combination difference(E);
  for (int64_t t = 0; t < tokens; t++) {
    routing.read(logits.subspan(t * E, E));
    routing.route(everyone.data(), all, own.data(), own_weights.data());
    for (int64_t s = 0; s < sets.count(); s++) {
      routing.route(left.data() + s * E, sets[s], chosen.data(), weights.data());
      difference.clear();
      for (int64_t j = 0; j < k; j++) difference.add(own[j], own_weights[j]);
      for (int64_t j = 0; j < k; j++) difference.add(chosen[j], -weights[j]);
      errors[s] += difference.squared_norm(output_gram.data() + t * pairs, row_start.data());
    }
  }
  return errors;
}

}  // namespace hcsmoe
