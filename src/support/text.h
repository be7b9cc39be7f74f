#pragma once
// Values from files as error messages show them.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace hcsmoe {

/// "[60, 2048]"
inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

/// A name from a file, in quotes: control characters are escaped (they could cut the message, or steer a terminal), long names are cut.
inline std::string name_text(std::string_view name) {
  constexpr size_t longest = 200;
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out = "\"";
  for (char c : name.substr(0, longest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
    } else {
      out += c;
    }
  }
  return out + (name.size() > longest ? "...\"" : "\"");
}

/// Lines for a terminal or a log that may hold text from files: control characters other than line breaks and tabs are escaped.
inline std::string printable(std::string_view lines) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  for (size_t i = 0; i < lines.size(); ++i) {
    const auto byte = static_cast<unsigned char>(lines[i]);
    // U+0080 to U+009F steer terminals too; their second byte in UTF-8 follows 0xc2.
    const bool c1 = byte == 0xc2 && i + 1 < lines.size() && static_cast<unsigned char>(lines[i + 1]) < 0xa0;
    if ((byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f || c1) {
      out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
    } else {
      out += lines[i];
    }
  }
  return out;
}

}  // namespace hcsmoe
