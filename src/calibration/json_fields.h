#pragma once
// Fields of tokenizer.json, read with errors that name the file, the part of it ("normalizer", "model") and the feature that is refused.

#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace hcsmoe {

using Json = nlohmann::ordered_json;

/// Where in which file: "FOLDER/tokenizer.json: pre_tokenizer".
struct JsonPlace {
  std::string source;
  std::string part;
  std::string text() const { return source + ": " + part; }
  JsonPlace in(const std::string& inner) const { return {source, part + "." + inner}; }
};

/// Throws the UserError for a feature that this tokenizer does not do exactly as Hugging Face does.
[[noreturn]] void refuse(const JsonPlace&, const std::string& feature);

void require_object(const Json&, const JsonPlace&);
/// Refuses keys that are not listed: an option that is not known may change the ids.
void require_known_keys(const Json& object, std::initializer_list<const char*> known, const JsonPlace&);
bool is_set(const Json& object, const char* key);  // there, and not null
const Json& required(const Json& object, const char* key, const JsonPlace&);
std::string required_text(const Json& object, const char* key, const JsonPlace&);
/// Of a key that may be absent or null.
std::string text_or(const Json& object, const char* key, const std::string& otherwise, const JsonPlace&);
bool flag_or(const Json& object, const char* key, bool otherwise, const JsonPlace&);

/// Sequences may hold Sequences; deeper than this is refused, so that a file cannot exhaust the stack.
constexpr int max_sequence_depth = 8;

}  // namespace hcsmoe
