#pragma once
// The metadata of a model card: YAML between two lines of three dashes, at its beginning.

#include <string>
#include <vector>

namespace hcsmoe {

/// Text as a double-quoted YAML scalar. Malformed UTF-8 is replaced; what a YAML reader may refuse is escaped.
std::string yaml_text(const std::string&);

/// Of the metadata of a card the keys that hold for a model made from it, as the card has them: scalars, and lists of scalars.
struct CarriedKey {
  std::string key;
  std::vector<std::string> values;
  bool list = false;
};
/// Empty where there is no metadata that can be read.
std::vector<CarriedKey> carried_metadata(const std::string& card);

}  // namespace hcsmoe
