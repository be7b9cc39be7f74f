#pragma once
// UTF-8 by hand: what the tokenizer needs of it, on bytes that may hold anything, NUL and noncharacters included.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace hcsmoe {

/// The offset of the first byte that is not part of a well-formed character (overlong forms, surrogates and values above U+10FFFF are not).
std::optional<size_t> find_malformed_utf8(std::string_view text);

/// Bytes of the character that starts with this byte. Of well-formed text only, like all that follows.
inline size_t utf8_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}
inline bool is_utf8_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }
/// The character that starts at an offset.
char32_t code_point_at(std::string_view text, size_t offset);
/// The offset of the character before `offset`, which must not be 0.
size_t previous_character(std::string_view text, size_t offset);
void append_utf8(std::string& text, char32_t code_point);

/// The White_Space property, which is what \s means to the regex engines of Hugging Face `tokenizers`.
bool is_white_space(char32_t code_point);

}  // namespace hcsmoe
