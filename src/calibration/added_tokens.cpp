#include "calibration/added_tokens.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "calibration/utf8.h"
#include "hcsmoe/error.h"

namespace hcsmoe {

namespace {

/// \w of the Rust regex engine. ICU knows the whole property, our regular expressions the characters that are younger than ICU.
bool is_word_character(std::string_view text, size_t offset) {
  static const Regex letters_and_marks("[\\p{L}\\p{M}\\p{Nd}]", {"added_tokens", "single_word"});
  const auto character = static_cast<UChar32>(code_point_at(text, offset));
  if (u_isUAlphabetic(character) || u_hasBinaryProperty(character, UCHAR_JOIN_CONTROL)) return true;
  if ((U_GET_GC_MASK(character) & (U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK)) != 0) return true;
  return letters_and_marks.segments(text.substr(offset, utf8_length(text[offset]))).front().match;
}

bool stands_alone(std::string_view text, const Range& range) {
  const bool word_before = range.begin > 0 && is_word_character(text, previous_character(text, range.begin));
  const bool word_after = range.end < text.size() && is_word_character(text, range.end);
  return !word_before && !word_after;
}

size_t white_space_begin(std::string_view text, size_t end) {
  while (end > 0) {
    const size_t previous = previous_character(text, end);
    if (!is_white_space(code_point_at(text, previous))) break;
    end = previous;
  }
  return end;
}

size_t white_space_end(std::string_view text, size_t begin) {
  while (begin < text.size() && is_white_space(code_point_at(text, begin))) begin += utf8_length(text[begin]);
  return begin;
}

}  // namespace

std::vector<AddedToken> read_added_tokens(const Json& list, const JsonPlace& place, const BytePairEncoding& model) {
  std::vector<AddedToken> tokens;
  if (list.is_null()) return tokens;
  if (!list.is_array()) throw UserError(place.text() + " must be a list");
  std::unordered_map<std::string, size_t> known;  // content -> index in tokens
  const auto vocabulary_size = static_cast<int32_t>(model.vocabulary().size());
  std::optional<int64_t> highest;
  for (const Json& entry : list) {
    require_object(entry, place);
    require_known_keys(entry, {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}, place);
    AddedToken token{.content = required_text(entry, "content", place)};
    token.single_word = flag_or(entry, "single_word", false, place);
    token.strip_left = flag_or(entry, "lstrip", false, place);
    token.strip_right = flag_or(entry, "rstrip", false, place);
    token.special = flag_or(entry, "special", false, place);
    token.normalized = flag_or(entry, "normalized", !token.special, place);
    if (token.content.empty()) continue;
    if (const auto before = known.find(token.content); before != known.end()) {
      token.id = tokens[before->second].id;
      if (token == tokens[before->second]) continue;
      refuse(place, "the token \"" + token.content + "\" with two different descriptions");
    }
    const std::optional<int32_t> in_vocabulary = model.find(token.content);
    const int64_t id = in_vocabulary ? *in_vocabulary : highest && *highest >= vocabulary_size ? *highest + 1 : vocabulary_size;
    if (id > std::numeric_limits<int32_t>::max())
      throw UserError(place.text() + ": the token \"" + token.content + "\" has no number left");
    token.id = static_cast<int32_t>(id);
    highest = std::max(highest.value_or(id), id);
    known.emplace(token.content, tokens.size());
    tokens.push_back(std::move(token));
  }
  // Of equal patterns the first wins, and Hugging Face lists the special tokens first.
  std::stable_partition(tokens.begin(), tokens.end(), [](const AddedToken& token) { return token.special; });
  return tokens;
}

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens, const std::vector<std::string>& patterns) : tokens_(std::move(tokens)) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    starts_[static_cast<unsigned char>(patterns[i][0])] = true;
    sorted_.emplace_back(patterns[i], i);
  }
  std::sort(sorted_.begin(), sorted_.end());
}

const AddedToken* AddedTokenFinder::longest_at(std::string_view text, size_t offset, size_t& length) const {
  const AddedToken* longest = nullptr;
  auto first = sorted_.begin(), last = sorted_.end();  // the patterns that agree with the text in `depth` bytes
  for (size_t depth = 0; first != last; ++depth) {
    if (first->first.size() == depth) {
      longest = &tokens_[first->second];
      length = depth;
      while (first != last && first->first.size() == depth) ++first;
    }
    if (offset + depth == text.size()) break;
    const auto wanted = static_cast<unsigned char>(text[offset + depth]);
    const auto byte = [&](const auto& pattern) { return static_cast<unsigned char>(pattern.first[depth]); };
    first = std::partition_point(first, last, [&](const auto& pattern) { return byte(pattern) < wanted; });
    last = std::partition_point(first, last, [&](const auto& pattern) { return byte(pattern) == wanted; });
  }
  return longest;
}

std::vector<AddedTokenFinder::Part> AddedTokenFinder::parts(std::string_view text) const {
  std::vector<Part> result;
  size_t covered = 0;
  for (size_t i = 0; i < text.size();) {
    size_t length = 0;
    const AddedToken* token = starts_[static_cast<unsigned char>(text[i])] ? longest_at(text, i, length) : nullptr;
    if (token == nullptr) {
      ++i;
      continue;
    }
    Range range{i, i + length};
    i = range.end;  // the search goes on here, even inside white space that this token takes
    if (token->single_word && !stands_alone(text, range)) continue;
    if (token->strip_left) range.begin = std::max(white_space_begin(text, range.begin), covered);
    if (token->strip_right) range.end = white_space_end(text, range.end);
    if (covered < range.begin) result.push_back({{covered, range.begin}, nullptr});
    result.push_back({range, token});
    covered = range.end;
  }
  if (covered < text.size()) result.push_back({{covered, text.size()}, nullptr});
  return result;
}

}  // namespace hcsmoe
