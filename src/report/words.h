#pragma once
// What the figures say, in sentences.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace hcsmoe {

struct Words {
  std::vector<std::string> facts;   // what was done, what it cost
  std::vector<std::string> advice;  // what to try next, and why
};
/// data: as Report::data() makes it.
Words words_of(const nlohmann::ordered_json& data);

/// What the recipe's method does, as the end of "In each layer, ...".
std::string method_words(const nlohmann::ordered_json& recipe);

}  // namespace hcsmoe
