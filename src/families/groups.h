#pragma once

#include <span>

#include "hcsmoe/families.h"

namespace hcsmoe {

/// Group-limited choice (DeepSeek-V3, arXiv 2412.19437, section 2.1.2): -infinity for the experts outside the rule's best groups. values:
/// [E] of one token, scores + correction biases. A group's value is the sum of its two largest; of equal groups the first is better. Error:
/// a value that is not finite.
void keep_best_groups(std::span<double> values, const RoutingRule&);

}  // namespace hcsmoe
