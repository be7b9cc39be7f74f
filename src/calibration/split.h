#pragma once
// How segments become pieces: the split behaviours of Hugging Face `tokenizers`. Of "a-b", matched at the hyphen:
//   removed a|b   isolated a|-|b   merged_with_previous a-|b   merged_with_next a|-b   contiguous like isolated, equal neighbours together

#include <optional>
#include <string>
#include <vector>

#include "calibration/regex.h"

namespace hcsmoe {

enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

std::optional<SplitBehavior> split_behavior(const std::string& name);  // as in tokenizer.json

/// invert: what matched counts as lying between, and the other way round. No piece is empty.
std::vector<Range> split(const std::vector<Segment>& segments, bool invert, SplitBehavior);

}  // namespace hcsmoe
