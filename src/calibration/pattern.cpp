#include "calibration/pattern.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "hcsmoe/error.h"

namespace hcsmoe {

Pattern make_pattern(const Json& description, const JsonPlace& place) {
  require_object(description, place);
  require_known_keys(description, {"String", "Regex"}, place);
  if (description.size() != 1) throw UserError(place.text() + " must hold either \"String\" or \"Regex\"");
  if (description.contains("Regex")) return make_pattern(Regex(required_text(description, "Regex", place), place));
  const std::string literal = required_text(description, "String", place);
  if (literal.empty()) refuse(place, "an empty string");
  return [literal](std::string_view text) { return segments_of(literal, text); };
}

}  // namespace hcsmoe
