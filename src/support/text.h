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

}  // namespace hcsmoe
