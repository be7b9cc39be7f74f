#pragma once
// Regular expressions in tokenizer.json are written for Oniguruma (Ruby syntax, Unicode 16), which Hugging Face `tokenizers` uses. This
// turns one into a PCRE2 pattern that matches the same, or refuses it.
//
//   in tokenizer.json      for PCRE2                       why
//   \s, \S                 explicit sets                   PCRE2 counts U+180E as white space
//   \p{L}, \P{L}, \d       \p{L} and the code points added since PCRE2's Unicode version
//   \p{Han}                \p{sc:Han}                      PCRE2 would take Script_Extensions
//   X{1,3}+                (?:X{1,3})+                     possessive in PCRE2, a repeated group in Ruby
//   X{3}?                  (?:X{3})?                       lazy in PCRE2, optional in Ruby
//   X{,3}                  X{0,3}                          literal text in PCRE2
//   \uHHHH, \v             \x{HHHH}, \x{b}                 other meanings
//
// Refused: && and nested classes, \h \w \b and other escapes whose meaning differs, inline options other than i, named groups, verbs.

#include <string>
#include <string_view>

#include "calibration/json_fields.h"

namespace hcsmoe {

std::string translate_regex(std::string_view pattern, const JsonPlace&);

}  // namespace hcsmoe
