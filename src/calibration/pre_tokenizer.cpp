#include "calibration/pre_tokenizer.h"

#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "calibration/pattern.h"
#include "calibration/split.h"
#include "calibration/utf8.h"
#include "hcsmoe/error.h"

namespace hcsmoe {

namespace {

void split_pieces(PreTokenized& text, const Pattern& pattern, bool invert, SplitBehavior behavior) {
  std::vector<PreTokenized::Piece> result;
  for (const auto& piece : text.pieces) {
    const size_t start = piece.range.begin;
    for (const Range& part : split(pattern(text.view(piece)), invert, behavior)) {
      result.push_back({{start + part.begin, start + part.end}, piece.at_text_start && part.begin == 0});
    }
  }
  text.pieces = std::move(result);
}

/// Replaces every piece by what `rewrite` appends for it to the new text.
template <class Rewrite>
void rewrite_pieces(PreTokenized& text, const Rewrite& rewrite) {
  PreTokenized result;
  result.text.reserve(text.text.size() + text.text.size() / 2);
  for (const auto& piece : text.pieces) {
    const size_t begin = result.text.size();
    rewrite(text.view(piece), piece.at_text_start, result.text);
    result.pieces.push_back({{begin, result.text.size()}, piece.at_text_start});
  }
  text = std::move(result);
}

PreTokenizer make_split(const Json& description, const JsonPlace& place) {
  require_known_keys(description, {"type", "pattern", "behavior", "invert"}, place);
  const std::string name = required_text(description, "behavior", place);
  const std::optional<SplitBehavior> behavior = split_behavior(name);
  if (!behavior) refuse(place, "the behavior " + name);
  return [pattern = make_pattern(required(description, "pattern", place), place.in("pattern")), behavior = *behavior,
          invert = flag_or(description, "invert", false, place)](PreTokenized& text) { split_pieces(text, pattern, invert, behavior); };
}

PreTokenizer make_digits(const Json& description, const JsonPlace& place) {
  require_known_keys(description, {"type", "individual_digits"}, place);
  const bool individual = flag_or(description, "individual_digits", false, place);
  return [pattern = make_pattern(Regex("\\p{N}", place)), behavior = individual ? SplitBehavior::isolated : SplitBehavior::contiguous](
             PreTokenized& text) { split_pieces(text, pattern, false, behavior); };
}

/// GPT-2's printable character for each byte: itself where it is printable Latin-1, else one from U+0100 on.
std::array<std::string, 256> byte_level_characters() {
  std::array<std::string, 256> table;
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    append_utf8(table[byte], printable ? byte : next++);
  }
  return table;
}

PreTokenizer make_byte_level(const Json& description, const JsonPlace& place) {
  require_known_keys(description, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, place);
  const bool prefix = flag_or(description, "add_prefix_space", true, place);
  std::optional<Pattern> words;
  if (flag_or(description, "use_regex", true, place)) {
    words = make_pattern(Regex("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", place));
  }
  return [prefix, words, characters = byte_level_characters()](PreTokenized& text) {
    if (prefix) {
      rewrite_pieces(text, [](std::string_view piece, bool, std::string& out) {
        if (!piece.starts_with(' ')) out += ' ';
        out += piece;
      });
    }
    if (words) split_pieces(text, *words, false, SplitBehavior::isolated);
    rewrite_pieces(text, [&](std::string_view piece, bool, std::string& out) {
      for (const char byte : piece) out += characters[static_cast<unsigned char>(byte)];
    });
  };
}

enum class PrependScheme { first, always, never };

PrependScheme prepend_scheme(const Json& description, const JsonPlace& place) {
  const std::string scheme = text_or(description, "prepend_scheme", "always", place);
  // Written by tokenizers before 0.15; true says nothing, and with false Hugging Face reads only "never".
  if (!flag_or(description, "add_prefix_space", true, place) && scheme != "never") {
    refuse(place, "add_prefix_space false with the prepend_scheme " + scheme);
  }
  if (scheme == "first") return PrependScheme::first;
  if (scheme == "always") return PrependScheme::always;
  if (scheme == "never") return PrependScheme::never;
  refuse(place, "the prepend_scheme " + scheme);
}

PreTokenizer make_metaspace(const Json& description, const JsonPlace& place) {
  require_known_keys(description, {"type", "replacement", "str_rep", "add_prefix_space", "prepend_scheme", "split"}, place);
  const std::string mark = required_text(description, "replacement", place);
  if (mark.empty() || utf8_length(mark[0]) != mark.size()) throw UserError(place.text() + ": \"replacement\" must be one character");
  std::optional<Pattern> at_marks;
  if (flag_or(description, "split", true, place)) at_marks = [mark](std::string_view text) { return segments_of(mark, text); };
  return [mark, at_marks, scheme = prepend_scheme(description, place)](PreTokenized& text) {
    rewrite_pieces(text, [&](std::string_view piece, bool at_text_start, std::string& out) {
      const bool marked = piece.starts_with(' ') || piece.starts_with(mark);
      if (!marked && (scheme == PrependScheme::always || (scheme == PrependScheme::first && at_text_start))) out += mark;
      for (const char c : piece) {
        if (c == ' ') {
          out += mark;
        } else {
          out += c;
        }
      }
    });
    if (at_marks) split_pieces(text, *at_marks, false, SplitBehavior::merged_with_next);
  };
}

}  // namespace

PreTokenizer make_pre_tokenizer(const Json& description, const JsonPlace& place, int depth) {
  if (description.is_null()) return [](PreTokenized&) {};
  require_object(description, place);
  const std::string type = required_text(description, "type", place);
  if (type == "Sequence") {
    require_known_keys(description, {"type", "pretokenizers"}, place);
    if (depth == max_sequence_depth) refuse(place, "a Sequence in so many others");
    std::vector<PreTokenizer> steps;
    for (const Json& step : required(description, "pretokenizers", place)) {
      steps.push_back(make_pre_tokenizer(step, place.in(type), depth + 1));
    }
    return [steps = std::move(steps)](PreTokenized& text) {
      for (const PreTokenizer& step : steps) step(text);
    };
  }
  if (type == "Split") return make_split(description, place.in(type));
  if (type == "Digits") return make_digits(description, place.in(type));
  if (type == "ByteLevel") return make_byte_level(description, place.in(type));
  if (type == "Metaspace") return make_metaspace(description, place.in(type));
  refuse(place, "the type " + type);
}

}  // namespace hcsmoe
