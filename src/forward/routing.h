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

/// One token: probabilities [E] = softmax(logits) in double; chosen: k (expert, weight) by descending probability, equal ones by smaller
/// index.
struct RoutedToken {
  std::vector<double> probabilities;
  std::vector<std::pair<int32_t, float>> chosen;
};
void route_token(std::span<const float> logits, const RoutingRule& rule, RoutedToken& token);

}  // namespace hcsmoe
