#include "calibration/json_fields.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

#include "hcsmoe/error.h"

namespace hcsmoe {

void refuse(const JsonPlace& place, const std::string& feature) {
  throw UserError(place.text() + ": " + feature + " is not supported",
                  "tokenise with Hugging Face `tokenizers` and give the ids as a .npy file in calibration.files");
}

void require_object(const Json& value, const JsonPlace& place) {
  if (!value.is_object()) throw UserError(place.text() + " must be an object, not " + value.type_name());
}

void require_known_keys(const Json& object, std::initializer_list<const char*> known, const JsonPlace& place) {
  for (const auto& [key, value] : object.items()) {
    const std::string_view name = key;
    if (std::none_of(known.begin(), known.end(), [&](const char* k) { return name == k; })) refuse(place, "option \"" + key + "\"");
  }
}

bool is_set(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && !found->is_null();
}

const Json& required(const Json& object, const char* key, const JsonPlace& place) {
  const auto found = object.find(key);
  if (found == object.end()) throw UserError(place.text() + ": \"" + key + "\" is missing");
  return *found;
}

std::string required_text(const Json& object, const char* key, const JsonPlace& place) {
  const Json& value = required(object, key, place);
  if (!value.is_string()) throw UserError(place.text() + ": \"" + key + "\" must be a string, not " + value.type_name());
  return value.get<std::string>();
}

std::string text_or(const Json& object, const char* key, const std::string& otherwise, const JsonPlace& place) {
  return is_set(object, key) ? required_text(object, key, place) : otherwise;
}

bool flag_or(const Json& object, const char* key, bool otherwise, const JsonPlace& place) {
  if (!is_set(object, key)) return otherwise;
  const Json& value = object.at(key);
  if (!value.is_boolean()) throw UserError(place.text() + ": \"" + key + "\" must be true or false, not " + value.type_name());
  return value.get<bool>();
}

}  // namespace hcsmoe
