#pragma once
// The pre-tokenizer of tokenizer.json: cuts a text into the pieces that byte-pair encoding merges within, and rewrites their characters.
// null, Sequence, Split, ByteLevel, Digits, Metaspace.

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "calibration/json_fields.h"
#include "calibration/regex.h"

namespace hcsmoe {

/// A text and the pieces of it that are left, in order, none empty.
struct PreTokenized {
  struct Piece {
    Range range;                 // in text
    bool at_text_start = false;  // offset 0 of the whole text, before anything was cut off
  };
  std::string text;
  std::vector<Piece> pieces;

  std::string_view view(const Piece& piece) const {
    return std::string_view(text).substr(piece.range.begin, piece.range.end - piece.range.begin);
  }
};

/// Safe to call from several threads at once.
using PreTokenizer = std::function<void(PreTokenized&)>;

PreTokenizer make_pre_tokenizer(const Json& description, const JsonPlace&, int depth = 0);

}  // namespace hcsmoe
