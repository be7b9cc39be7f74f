#include "report/metadata.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "config/yaml_node.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

constexpr size_t longest_metadata = 1'000'000;
constexpr size_t longest_value = 1000;

/// What follows the line that begins at `from`; npos: nothing.
size_t next_line(std::string_view text, size_t from) {
  const size_t end = text.find('\n', from);
  return end == std::string_view::npos ? end : end + 1;
}

/// The text between the lines of dashes; empty if there is none.
std::string metadata_of(std::string_view card) {
  if (card.starts_with("\xef\xbb\xbf")) card.remove_prefix(3);
  const auto is_fence = [&](size_t from) {
    const std::string_view line = card.substr(from, card.find('\n', from) - from);
    return line == "---" || line == "---\r";
  };
  if (!is_fence(0)) return {};
  const size_t begin = next_line(card, 0);
  for (size_t line = begin; line < std::min(card.size(), longest_metadata); line = next_line(card, line)) {
    if (is_fence(line)) return std::string(card.substr(begin, line - begin));
  }
  return {};
}

}  // namespace

std::string yaml_text(const std::string& text) {
  const std::string quoted = nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  // Characters that are text in JSON, but not printable, or ends of lines, in YAML.
  static constexpr std::pair<std::string_view, const char*> refused[] = {{"\x7f", "\\u007f"},         {"\xe2\x80\xa8", "\\u2028"},
                                                                         {"\xe2\x80\xa9", "\\u2029"}, {"\xef\xbb\xbf", "\\ufeff"},
                                                                         {"\xef\xbf\xbe", "\\ufffe"}, {"\xef\xbf\xbf", "\\uffff"}};
  std::string out;
  for (size_t i = 0; i < quoted.size();) {
    const std::string_view rest = std::string_view(quoted).substr(i);
    const auto found = std::find_if(std::begin(refused), std::end(refused), [&](const auto& each) { return rest.starts_with(each.first); });
    if (found != std::end(refused)) {
      out += found->second;
      i += found->first.size();
    } else if (rest.size() > 1 && rest[0] == '\xc2' && static_cast<unsigned char>(rest[1]) < 0xa0) {  // U+0080 to U+009f
      static constexpr const char* digits = "0123456789abcdef";
      const auto byte = static_cast<unsigned char>(rest[1]);
      out += std::string("\\u00") + digits[byte >> 4] + digits[byte & 15];
      i += 2;
    } else {
      out += quoted[i++];
    }
  }
  return out;
}

std::vector<CarriedKey> carried_metadata(const std::string& card) {
  const std::string text = metadata_of(card);
  if (text.empty()) return {};
  std::vector<CarriedKey> carried;
  try {
    const YamlNode root = parse_yaml(text, "README.md", "");
    for (const char* key : {"language", "license", "license_name", "license_link", "pipeline_tag", "datasets", "tags"}) {
      const YamlNode* value = root.find(key);
      if (!value) continue;
      CarriedKey found{key, {}, value->kind == YamlNode::Kind::list};
      const auto take = [&](const YamlNode& node) {
        if (node.kind == YamlNode::Kind::scalar && !node.text.empty() && node.text.size() <= longest_value)
          found.values.push_back(node.text);
      };
      take(*value);
      if (found.list) {
        for (const YamlNode& item : value->items) take(item);
      }
      if (!found.values.empty()) carried.push_back(std::move(found));
    }
  } catch (const UserError&) {  // a card that is not as the hub has them: it is kept beside this one
    return {};
  }
  return carried;
}

}  // namespace hcsmoe
