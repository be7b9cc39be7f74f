#define PCRE2_CODE_UNIT_WIDTH 8
#include "calibration/regex.h"

#include <pcre2.h>

#include <array>
#include <optional>

#include "calibration/regex_translation.h"
#include "calibration/utf8.h"
#include "hcsmoe/error.h"

namespace hcsmoe {

namespace {

struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeCompileContext {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};

PCRE2_SPTR units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

std::string error_text(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

/// Finds matches from left to right in one text.
class Search {
 public:
  Search(const pcre2_code* code, std::string_view text) : code_(code), text_(text), data_(pcre2_match_data_create(1, nullptr)) {
    if (!data_) throw Error("out of memory in a regular expression");
  }

  std::optional<Range> from(size_t offset, const std::string& pattern) {
    int found = pcre2_match(code_, units(text_), text_.size(), offset, PCRE2_NO_UTF_CHECK, data_.get(), nullptr);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      found = pcre2_match(code_, units(text_), text_.size(), offset, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data_.get(), nullptr);
    }
    if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
    if (found < 0) throw UserError("the tokenizer's regular expression " + pattern + " failed on a text: " + error_text(found));
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data_.get());
    return Range{offsets[0], offsets[1]};
  }

 private:
  const pcre2_code* code_;
  std::string_view text_;
  std::unique_ptr<pcre2_match_data, FreeMatchData> data_;
};

}  // namespace

Regex::Regex(std::string_view pattern, const JsonPlace& place) : pattern_(pattern) {
  constexpr size_t longest_pattern = 1 << 16;
  if (pattern.size() > longest_pattern) refuse(place, "a regular expression of " + std::to_string(pattern.size()) + " bytes");
  const std::string translated = translate_regex(pattern, place);
  const std::unique_ptr<pcre2_compile_context, FreeCompileContext> context(pcre2_compile_context_create(nullptr));
  if (!context) throw Error("out of memory in a regular expression");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  // In Ruby ^ and $ match at every line.
  constexpr uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_UTF_CHECK;
  int code = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* compiled = pcre2_compile(units(translated), translated.size(), options, &code, &offset, context.get());
  if (compiled == nullptr) throw UserError(place.text() + ": the regular expression " + pattern_ + " cannot be used: " + error_text(code));
  code_ = std::shared_ptr<void>(compiled, [](void* c) { pcre2_code_free(static_cast<pcre2_code*>(c)); });
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);  // where it fails, the interpreter matches
}

std::vector<Segment> Regex::segments(std::string_view text) const {
  std::vector<Segment> result;
  Search search(static_cast<const pcre2_code*>(code_.get()), text);
  std::optional<size_t> last_match_end;
  size_t covered = 0, offset = 0;
  while (offset <= text.size()) {
    const std::optional<Range> found = search.from(offset, pattern_);
    if (!found) break;
    if (found->empty() && last_match_end == found->end) {  // an empty match where the last one ended: look one character on
      offset += offset < text.size() ? utf8_length(text[offset]) : 1;
      continue;
    }
    if (covered != found->begin) result.push_back({{covered, found->begin}, false});
    result.push_back({*found, true});
    covered = offset = found->end;
    last_match_end = found->end;
  }
  if (covered != text.size()) result.push_back({{covered, text.size()}, false});
  return result;
}

std::vector<Segment> segments_of(std::string_view literal, std::string_view text) {
  std::vector<Segment> result;
  size_t covered = 0;
  for (size_t found = text.find(literal); found != std::string_view::npos; found = text.find(literal, covered)) {
    if (covered != found) result.push_back({{covered, found}, false});
    result.push_back({{found, found + literal.size()}, true});
    covered = found + literal.size();
  }
  if (covered != text.size()) result.push_back({{covered, text.size()}, false});
  return result;
}

}  // namespace hcsmoe
