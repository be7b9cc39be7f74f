#include "calibration/split.h"

#include <algorithm>

namespace hcsmoe {

std::optional<SplitBehavior> split_behavior(const std::string& name) {
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  return std::nullopt;
}

std::vector<Range> split(const std::vector<Segment>& segments, bool invert, SplitBehavior behavior) {
  std::vector<Range> pieces;
  bool after_match = false;
  const auto forward = [&](auto joins_previous) {
    for (const Segment& segment : segments) {
      const bool match = segment.match != invert;
      if (!pieces.empty() && joins_previous(match)) {
        pieces.back().end = segment.range.end;
      } else {
        pieces.push_back(segment.range);
      }
      after_match = match;
    }
  };
  switch (behavior) {
    case SplitBehavior::removed:
      for (const Segment& segment : segments) {
        if (segment.match == invert) pieces.push_back(segment.range);
      }
      break;
    case SplitBehavior::isolated:
      forward([](bool) { return false; });
      break;
    case SplitBehavior::contiguous:
      forward([&](bool match) { return match == after_match; });
      break;
    case SplitBehavior::merged_with_previous:
      forward([&](bool match) { return match && !after_match; });
      break;
    case SplitBehavior::merged_with_next:
      for (auto segment = segments.rbegin(); segment != segments.rend(); ++segment) {
        const bool match = segment->match != invert;
        if (!pieces.empty() && match && !after_match) {
          pieces.back().begin = segment->range.begin;
        } else {
          pieces.push_back(segment->range);
        }
        after_match = match;
      }
      std::reverse(pieces.begin(), pieces.end());
  }
  std::erase_if(pieces, [](const Range& piece) { return piece.empty(); });
  return pieces;
}

}  // namespace hcsmoe
