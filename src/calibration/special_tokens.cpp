#include "calibration/special_tokens.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "hcsmoe/error.h"
#include "support/json.h"

namespace hcsmoe {

namespace {

int32_t token_id(const Json& value, const JsonPlace& place) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > std::numeric_limits<int32_t>::max()) {
    throw UserError(place.text() + " must be a token id, not " + value.dump());
  }
  return value.get<int32_t>();
}

Json read_optional(const std::filesystem::path& file) {
  Json content = std::filesystem::exists(file) ? read_json(file) : Json::object();
  require_object(content, {file.string(), "the document"});
  return content;
}

/// "eos_token": "</s>", or {"content": "</s>", ...}. Also where the files leave it out or say null.
std::optional<int32_t> named_token(const std::filesystem::path& folder, const char* key, const TokenLookup& lookup) {
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const JsonPlace place{(folder / name).string(), key};
    const Json content = read_optional(folder / name);
    if (!is_set(content, key)) continue;
    const Json& value = content.at(key);
    const std::string token = value.is_object() ? required_text(value, "content", place) : required_text(content, key, place);
    if (const std::optional<int32_t> id = lookup(token)) return id;
    throw UserError(place.text() + " is \"" + token + "\", which is not in tokenizer.json");
  }
  return std::nullopt;
}

/// "eos_token_id": 2, or [2, 32000]: the first.
std::optional<int32_t> numbered_token(const std::filesystem::path& folder, const char* key) {
  for (const char* name : {"config.json", "generation_config.json"}) {
    const JsonPlace place{(folder / name).string(), key};
    const Json content = read_optional(folder / name);
    if (!is_set(content, key)) continue;
    const Json& value = content.at(key);
    if (!value.is_array()) return token_id(value, place);
    if (!value.empty()) return token_id(value.front(), place);
  }
  return std::nullopt;
}

}  // namespace

std::vector<int32_t> template_prefix(const Json& processor, const JsonPlace& place, int depth) {
  std::vector<int32_t> prefix;
  if (processor.is_null()) return prefix;
  require_object(processor, place);
  const std::string type = required_text(processor, "type", place);
  if (type == "ByteLevel") return prefix;  // it trims offsets, no ids
  if (type == "Sequence") {
    if (depth == max_sequence_depth) refuse(place, "a Sequence in so many others");
    for (const Json& step : required(processor, "processors", place)) {
      std::vector<int32_t> outer = template_prefix(step, place.in(type), depth + 1);  // a later processor wraps what there is
      prefix.insert(prefix.begin(), outer.begin(), outer.end());
    }
    return prefix;
  }
  if (type != "TemplateProcessing") refuse(place, "the type " + type);
  require_known_keys(processor, {"type", "single", "pair", "special_tokens"}, place);
  const Json& single = required(processor, "single", place);
  if (!single.is_array()) throw UserError(place.text() + ": \"single\" must be a list");
  for (const Json& part : single) {
    require_object(part, place);
    if (!part.contains("SpecialToken")) return prefix;
    const Json& reference = part.at("SpecialToken");
    require_object(reference, place);
    const std::string name = required_text(reference, "id", place);
    const Json& tokens = required(processor, "special_tokens", place);
    require_object(tokens, place);
    const Json& token = required(tokens, name.c_str(), place);
    require_object(token, place);
    for (const Json& id : required(token, "ids", place)) prefix.push_back(token_id(id, place));
  }
  return prefix;
}

SpecialTokens read_special_tokens(const std::filesystem::path& folder, std::vector<int32_t> prefix, const TokenLookup& lookup) {
  SpecialTokens result;
  result.bos = named_token(folder, "bos_token", lookup);
  if (!result.bos) result.bos = numbered_token(folder, "bos_token_id");
  result.eos = named_token(folder, "eos_token", lookup);
  if (!result.eos) result.eos = numbered_token(folder, "eos_token_id");

  result.automatic = std::move(prefix);
  const JsonPlace place{(folder / "tokenizer_config.json").string(), "the document"};
  const Json config = read_optional(folder / "tokenizer_config.json");
  const std::string tokenizer_class = text_or(config, "tokenizer_class", "", place);
  const bool llama = tokenizer_class == "LlamaTokenizer" || tokenizer_class == "LlamaTokenizerFast";  // these add BOS unless told not to
  if (is_set(config, "add_bos_token") || llama) {
    result.automatic.clear();
    if (flag_or(config, "add_bos_token", true, place) && result.bos) result.automatic.push_back(*result.bos);
  }
  return result;
}

}  // namespace hcsmoe
