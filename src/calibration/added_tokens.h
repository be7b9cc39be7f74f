#pragma once
// Added tokens of tokenizer.json: strings that become one id wherever they stand in a text, before anything else looks at it.

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "calibration/byte_pair_encoding.h"
#include "calibration/json_fields.h"
#include "calibration/normalizer.h"
#include "calibration/regex.h"

namespace hcsmoe {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool single_word = false;  // not inside a word
  bool strip_left = false;   // takes the white space before it
  bool strip_right = false;  // and after it
  bool normalized = false;   // is looked for in the normalised text, itself normalised
  bool special = false;
  bool operator==(const AddedToken&) const = default;
};

/// Reads the list. A token of the vocabulary keeps its id; the others count on from the highest one, as Hugging Face numbers them.
std::vector<AddedToken> read_added_tokens(const Json& list, const JsonPlace&, const BytePairEncoding&);

/// Finds tokens in a text: from left to right, the longest at each place.
class AddedTokenFinder {
 public:
  struct Part {
    Range range;
    const AddedToken* token = nullptr;  // null: the text between tokens
  };

  /// patterns: what to look for, one a token.
  AddedTokenFinder(std::vector<AddedToken> tokens, const std::vector<std::string>& patterns);

  std::vector<Part> parts(std::string_view text) const;

 private:
  const AddedToken* longest_at(std::string_view text, size_t offset, size_t& length) const;

  std::vector<AddedToken> tokens_;
  std::vector<std::pair<std::string, size_t>> sorted_;  // patterns with the token's index, in byte order
  bool starts_[256] = {};                               // first bytes of patterns
};

}  // namespace hcsmoe
