#pragma once
// Merged tensors: made again where the plan and the original decide them, else compared with the shards of the work folder.

#include <set>
#include <string>

#include "hcsmoe/verification.h"

namespace hcsmoe {

/// sound: names of the tensors whose type and shape are right.
void verify_merged(const Ranks&, const OutputToVerify&, const Checkpoint& output, const std::set<std::string>& sound, Trace*, Findings&);

}  // namespace hcsmoe
