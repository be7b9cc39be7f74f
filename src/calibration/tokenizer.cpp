// The order of things in a tokenizer of Hugging Face `tokenizers`: added tokens that are looked for in the raw text; the normaliser, on
// what lies between them; added tokens that are looked for in the normalised text; the pre-tokenizer, on what lies between those; byte-pair
// encoding.

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "calibration/added_tokens.h"
#include "calibration/byte_pair_encoding.h"
#include "calibration/normalizer.h"
#include "calibration/pre_tokenizer.h"
#include "calibration/special_tokens.h"
#include "calibration/utf8.h"
#include "hcsmoe/calibration.h"
#include "hcsmoe/error.h"
#include "support/files.h"
#include "support/json.h"

namespace hcsmoe {

namespace {

constexpr uint64_t max_tokenizer_bytes = 200'000'000;

Json field(const Json& document, const char* key) { return document.contains(key) ? document.at(key) : Json(); }

AddedTokenFinder make_finder(const std::vector<AddedToken>& tokens, bool normalized, const Normalizer& normalizer, const JsonPlace& place) {
  std::vector<AddedToken> chosen;
  std::vector<std::string> patterns;
  for (const AddedToken& token : tokens) {
    if (token.normalized != normalized) continue;
    chosen.push_back(token);
    patterns.push_back(normalized ? normalizer(token.content) : token.content);
    if (patterns.back().empty()) refuse(place, "the token \"" + token.content + "\", of which the normalizer leaves nothing,");
  }
  return AddedTokenFinder(std::move(chosen), patterns);
}

}  // namespace

struct Tokenizer::State {
  State(const Json& document, const std::string& source)
      : model(required(document, "model", {source, "the document"}), {source, "model"}),
        added(read_added_tokens(field(document, "added_tokens"), {source, "added_tokens"}, model)),
        normalizer(make_normalizer(field(document, "normalizer"), {source, "normalizer"})),
        pre_tokenizer(make_pre_tokenizer(field(document, "pre_tokenizer"), {source, "pre_tokenizer"})),
        raw_finder(make_finder(added, false, normalizer, {source, "added_tokens"})),
        normalized_finder(make_finder(added, true, normalizer, {source, "added_tokens"})) {
    special.automatic = template_prefix(field(document, "post_processor"), {source, "post_processor"});
    for (const char* key : {"truncation", "padding"}) {
      if (is_set(document, key)) refuse({source, "the document"}, key);
    }
  }

  std::optional<int32_t> find(const std::string& token) const {
    for (const AddedToken& candidate : added) {
      if (candidate.content == token) return candidate.id;
    }
    return model.find(token);
  }

  void encode_between(std::string_view text, bool at_text_start, std::vector<int32_t>& ids) const {
    PreTokenized pieces;
    pieces.text = text;
    pieces.pieces.push_back({{0, text.size()}, at_text_start});
    pre_tokenizer(pieces);
    for (const auto& piece : pieces.pieces) model.encode(pieces.view(piece), ids);
  }

  BytePairEncoding model;
  std::vector<AddedToken> added;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  AddedTokenFinder raw_finder, normalized_finder;
  SpecialTokens special;
};

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::from_json(std::string_view tokenizer_json, const std::string& source_name) {
  const Json document = parse_json(tokenizer_json, source_name);
  require_object(document, {source_name, "the document"});
  return Tokenizer(std::make_unique<State>(document, source_name));
}

Tokenizer Tokenizer::load(const std::filesystem::path& model_folder) {
  const std::filesystem::path file = model_folder / "tokenizer.json";
  if (!std::filesystem::exists(file)) {
    throw UserError(
        model_folder.string() + " has no tokenizer.json",
        "transformers makes one: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER); or give token ids as a .npy file in "
        "calibration.files");
  }
  Tokenizer tokenizer = from_json(read_file(file, max_tokenizer_bytes), file.string());
  State& state = *tokenizer.state_;
  state.special = read_special_tokens(model_folder, state.special.automatic, [&](const std::string& token) { return state.find(token); });
  return tokenizer;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  if (const std::optional<size_t> offset = find_malformed_utf8(text)) {
    throw UserError("malformed UTF-8 at byte " + std::to_string(*offset) + " of the text");
  }
  std::vector<int32_t> ids;
  for (const auto& [range, token] : state_->raw_finder.parts(text)) {
    if (token != nullptr) {
      ids.push_back(token->id);
      continue;
    }
    const std::string normalized = state_->normalizer(std::string(text.substr(range.begin, range.end - range.begin)));
    for (const auto& [inner, inner_token] : state_->normalized_finder.parts(normalized)) {
      if (inner_token != nullptr) {
        ids.push_back(inner_token->id);
      } else {
        const bool at_text_start = range.begin == 0 && inner.begin == 0;
        state_->encode_between(std::string_view(normalized).substr(inner.begin, inner.end - inner.begin), at_text_start, ids);
      }
    }
  }
  return ids;
}

std::optional<int32_t> Tokenizer::automatic_bos() const {
  const std::vector<int32_t>& automatic = state_->special.automatic;
  if (automatic.size() > 1) {
    throw UserError("this model's tokenizer puts " + std::to_string(automatic.size()) + " tokens before a document",
                    "set calibration.add_bos to no, or to yes for BOS alone");
  }
  return automatic.empty() ? std::nullopt : std::optional(automatic.front());
}

std::optional<int32_t> Tokenizer::bos() const { return state_->special.bos; }
std::optional<int32_t> Tokenizer::eos() const { return state_->special.eos; }

int64_t Tokenizer::vocabulary_size() const {
  int64_t highest = -1;
  for (const auto& [token, id] : state_->model.vocabulary()) highest = std::max<int64_t>(highest, id);
  for (const AddedToken& token : state_->added) highest = std::max<int64_t>(highest, token.id);
  return highest + 1;
}

}  // namespace hcsmoe
