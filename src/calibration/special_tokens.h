#pragma once
// Which ids begin and end a document. Spread over several files of a model folder, in the order in which they count:
// tokenizer_config.json and special_tokens_map.json (as text), config.json and generation_config.json (as ids); whether BOS is added by
// itself stands in tokenizer_config.json (add_bos_token), else in the post_processor of tokenizer.json.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "calibration/json_fields.h"

namespace hcsmoe {

struct SpecialTokens {
  std::optional<int32_t> bos, eos;
  std::vector<int32_t> automatic;  // what the tokenizer puts before a document by itself
};

/// What the template of a post_processor puts before a text. Refuses processors other than ByteLevel, TemplateProcessing and Sequence.
std::vector<int32_t> template_prefix(const Json& post_processor, const JsonPlace&, int depth = 0);

using TokenLookup = std::function<std::optional<int32_t>(const std::string&)>;
SpecialTokens read_special_tokens(const std::filesystem::path& model_folder, std::vector<int32_t> template_prefix, const TokenLookup&);

}  // namespace hcsmoe
