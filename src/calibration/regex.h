#pragma once
// A compiled regular expression, and a text cut into what matches and what lies between: the one way in which splitters, replacements and
// normalisers of Hugging Face `tokenizers` look at a text.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "calibration/json_fields.h"

namespace hcsmoe {

struct Range {
  size_t begin = 0, end = 0;
  bool empty() const { return begin == end; }
};
struct Segment {
  Range range;
  bool match = false;
};

/// Shared by threads: matching keeps its state on the caller's side.
class Regex {
 public:
  /// Translated for PCRE2 (regex_translation.h) and compiled. Throws UserError: refused, or not a regular expression.
  Regex(std::string_view pattern, const JsonPlace&);

  /// The text in segments, in order, none left out. An empty match is a segment too: it separates its neighbours.
  std::vector<Segment> segments(std::string_view text) const;

 private:
  std::string pattern_;
  std::shared_ptr<void> code_;  // pcre2_code
};

/// The same for a plain string, which must not be empty.
std::vector<Segment> segments_of(std::string_view literal, std::string_view text);

}  // namespace hcsmoe
