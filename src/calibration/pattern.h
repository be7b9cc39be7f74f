#pragma once
// The "pattern" of a Replace or Split: {"String": "..."} or {"Regex": "..."}.

#include <functional>
#include <string_view>
#include <vector>

#include "calibration/json_fields.h"
#include "calibration/regex.h"

namespace hcsmoe {

/// Cuts a text into segments. Safe to call from several threads at once.
using Pattern = std::function<std::vector<Segment>(std::string_view)>;

Pattern make_pattern(const Json& description, const JsonPlace&);
inline Pattern make_pattern(Regex regex) {
  return [regex = std::move(regex)](std::string_view text) { return regex.segments(text); };
}

}  // namespace hcsmoe
