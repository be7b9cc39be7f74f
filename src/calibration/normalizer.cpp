#include "calibration/normalizer.h"

#include <unicode/normalizer2.h>
#include <unicode/uniset.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "calibration/pattern.h"
#include "hcsmoe/error.h"

namespace hcsmoe {

namespace {

const icu::Normalizer2* unicode_form(const std::string& type, UErrorCode& status) {
  if (type == "NFC") return icu::Normalizer2::getNFCInstance(status);
  if (type == "NFD") return icu::Normalizer2::getNFDInstance(status);
  if (type == "NFKC") return icu::Normalizer2::getNFKCInstance(status);
  if (type == "NFKD") return icu::Normalizer2::getNFKDInstance(status);
  return nullptr;
}

/// The tables of Hugging Face `tokenizers` are those of Unicode 9: characters that are younger stay as they are.
Normalizer make_unicode_normalizer(const icu::Normalizer2& form) {
  UErrorCode status = U_ZERO_ERROR;
  const auto known = std::make_shared<icu::UnicodeSet>(UNICODE_STRING_SIMPLE("[:age=9.0:]"), status);
  if (U_FAILURE(status)) throw Error(std::string("ICU has no Unicode ages: ") + u_errorName(status));
  known->freeze();
  const auto filtered = std::make_shared<icu::FilteredNormalizer2>(form, *known);
  return [known, filtered](std::string text) {  // `filtered` refers to `known`
    if (std::none_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0x80; })) return text;
    UErrorCode code = U_ZERO_ERROR;
    icu::UnicodeString normalized;
    filtered->normalize(icu::UnicodeString::fromUTF8(text), normalized, code);
    if (U_FAILURE(code)) throw Error(std::string("ICU cannot normalise a text: ") + u_errorName(code));
    std::string result;
    normalized.toUTF8String(result);
    return result;
  };
}

Normalizer make_replace(const Json& description, const JsonPlace& place) {
  require_known_keys(description, {"type", "pattern", "content"}, place);
  return [pattern = make_pattern(required(description, "pattern", place), place.in("pattern")),
          content = required_text(description, "content", place)](const std::string& text) {
    std::string result;
    result.reserve(text.size());
    for (const auto& [range, match] : pattern(text)) {
      if (match) {
        result += content;
      } else {
        result.append(text, range.begin, range.end - range.begin);
      }
    }
    return result;
  };
}

}  // namespace

Normalizer make_normalizer(const Json& description, const JsonPlace& place, int depth) {
  if (description.is_null()) return [](std::string text) { return text; };
  require_object(description, place);
  const std::string type = required_text(description, "type", place);
  if (type == "Sequence") {
    require_known_keys(description, {"type", "normalizers"}, place);
    if (depth == max_sequence_depth) refuse(place, "a Sequence in so many others");
    std::vector<Normalizer> steps;
    for (const Json& step : required(description, "normalizers", place)) steps.push_back(make_normalizer(step, place.in(type), depth + 1));
    return [steps = std::move(steps)](std::string text) {
      for (const Normalizer& step : steps) text = step(std::move(text));
      return text;
    };
  }
  if (type == "Prepend") {
    require_known_keys(description, {"type", "prepend"}, place);
    return [prefix = required_text(description, "prepend", place)](std::string text) { return text.empty() ? text : prefix + text; };
  }
  if (type == "Replace") return make_replace(description, place.in(type));
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* form = unicode_form(type, status);
  if (form == nullptr) refuse(place, "the type " + type);
  if (U_FAILURE(status)) throw Error("ICU has no " + type + ": " + u_errorName(status));
  require_known_keys(description, {"type"}, place);
  return make_unicode_normalizer(*form);
}

}  // namespace hcsmoe
