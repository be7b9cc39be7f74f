#pragma once
// Which experts a token goes to, and with which weight.

#include <cstdint>
#include <span>
#include <vector>

#include "hcsmoe/families.h"

namespace hcsmoe {

/// The tokens of each expert, ascending, with their routing weights. Rows are this rank's token numbers.
struct Routing {
  struct Entry {
    int32_t row;
    float weight;
  };
  std::vector<std::vector<Entry>> of_expert;  // [E]
  int64_t largest() const;                    // tokens of the busiest expert
};

/// One token: its scores [E] in double (probabilities where they are a softmax); chosen: k (expert, weight) in descending order of what
/// chooses them, logits or biased scores, equal ones by smaller index. So are equal groups.
struct RoutedToken {
  std::vector<double> probabilities;
  std::vector<std::pair<int32_t, float>> chosen;
  std::vector<double> order;  // [E] where it is not the logits' order: scores + correction biases, -infinity outside the chosen groups
};
/// The logits of E experts; rule.correction is empty or has as many.
void route_token(std::span<const float> logits, const RoutingRule& rule, RoutedToken& token);

}  // namespace hcsmoe
