#include "config/section.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <numeric>

namespace hcsmoe {
namespace {

/// Insertions, deletions, replacements and swaps of neighbours that turn a into b (optimal string alignment).
int64_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<int64_t> before_last, last(b.size() + 1), row(b.size() + 1);
  std::iota(last.begin(), last.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = static_cast<int64_t>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before_last[j - 2] + 1);
    }
    before_last = last;
    last = row;
  }
  return last.back();
}

std::string last_part(const std::string& path) { return path.substr(path.rfind('.') + 1); }  // npos + 1 is 0

/// The key that was probably meant: nearly the same path, or the same name in another section. Empty if none is near.
std::string nearest_key(const std::string& path, const std::vector<SectionKeys>& known) {
  if (path.size() > 100) return "";
  std::string nearest;
  int64_t least = 1 + static_cast<int64_t>(path.size()) / 3;  // further away, it is another word
  for (const SectionKeys& section : known) {
    for (const std::string& key : section.keys) {
      const std::string candidate = section.section.empty() ? key : section.section + "." + key;
      const int64_t elsewhere = 1 + edit_distance(last_part(path), key);  // costs one, so that the written section goes first
      const bool name_is_near = elsewhere <= 1 + static_cast<int64_t>(key.size()) / 3;
      const int64_t distance = std::min(edit_distance(path, candidate), name_is_near ? elsewhere : least);
      if (distance < least) {
        least = distance;
        nearest = candidate;
      }
    }
  }
  return nearest;
}

std::string joined(const std::vector<std::string>& words) {
  std::string line;
  for (const std::string& word : words) line += (line.empty() ? "" : ", ") + word;
  return line;
}

void check_mapping(const YamlNode& node, const std::string& path, const std::vector<SectionKeys>& known) {
  const auto section = std::find_if(known.begin(), known.end(), [&](const SectionKeys& s) { return s.section == path; });
  if (section == known.end()) return;  // a value, checked by its type
  if (node.kind == YamlNode::Kind::null) return;
  if (node.kind != YamlNode::Kind::mapping) {
    throw UserError(node.where + ": " + (path.empty() ? "a configuration" : "'" + path + "'") + " is a mapping (key: value), found " +
                    node.found() + "; keys allowed here: " + joined(section->keys));
  }
  for (size_t i = 0; i < node.keys.size(); ++i) {
    const std::string full = path.empty() ? node.keys[i] : path + "." + node.keys[i];
    if (std::find(section->keys.begin(), section->keys.end(), node.keys[i]) == section->keys.end()) {
      const std::string nearest = nearest_key(full, known);
      throw UserError(node.items[i].where + ": unknown key '" + full + "'" + (nearest.empty() ? "" : "; nearest: " + nearest) +
                      "; allowed here: " + joined(section->keys));
    }
    check_mapping(node.items[i], full, known);
  }
}

}  // namespace

void check_keys(const YamlNode& root, const std::vector<SectionKeys>& known) { check_mapping(root, "", known); }

std::optional<int64_t> parse_integer(const std::string& text) {
  int64_t number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

const YamlNode* Section::find(const std::string& key) const {
  const YamlNode* value = node_ ? node_->find(key) : nullptr;
  return value && value->kind != YamlNode::Kind::null ? value : nullptr;
}

UserError Section::error(const YamlNode& value, const std::string& key, const std::string& what, const std::string& hint) const {
  return UserError(value.where + ": " + full_key(key) + ": " + what, hint);
}

const std::string& Section::scalar(const YamlNode& value, const std::string& key, const std::string& expected) const {
  if (value.kind != YamlNode::Kind::scalar) throw error(value, key, "expected " + expected + ", found " + value.found());
  return value.text;
}

int64_t Section::integer(const std::string& key, int64_t default_value, int64_t least, int64_t most) const {
  const YamlNode* value = find(key);
  if (!value) return default_value;
  const std::string expected = "an integer from " + std::to_string(least) + " to " + std::to_string(most);
  const auto number = parse_integer(scalar(*value, key, expected));
  if (!number || value->quoted || *number < least || *number > most) {
    throw error(*value, key, "expected " + expected + ", found " + value->found());
  }
  return *number;
}

uint64_t Section::unsigned_integer(const std::string& key, uint64_t default_value) const {
  const YamlNode* value = find(key);
  if (!value) return default_value;
  const std::string expected = "an integer from 0 to " + std::to_string(std::numeric_limits<uint64_t>::max());
  const std::string& text = scalar(*value, key, expected);
  uint64_t number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc() || end != text.data() + text.size() || value->quoted) {
    throw error(*value, key, "expected " + expected + ", found " + value->found());
  }
  return number;
}

std::string Section::text(const std::string& key, const std::string& default_value) const {
  const YamlNode* value = find(key);
  if (!value) return default_value;
  const std::string& text = scalar(*value, key, "text");
  if (text.empty()) throw error(*value, key, "expected text, found nothing between the quotes");
  return text;
}

std::filesystem::path Section::resolve(const YamlNode& value, const std::string& key) const {
  const std::string& text = scalar(value, key, "a path");
  if (text.empty()) throw error(value, key, "expected a path, found nothing between the quotes");
  if (std::any_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x20; })) {
    throw error(value, key, "the path has a control character (a line break or the like) in it");
  }
  if (text == "~" || text.starts_with("~/")) throw error(value, key, "'~' is not expanded in " + value.found(), "write the path in full");
  const std::filesystem::path path = (value.folder / text).lexically_normal();
  return path.has_filename() ? path : path.parent_path();  // "folder/" names the folder
}

std::filesystem::path Section::path(const std::string& key) const {
  const YamlNode* value = find(key);
  return value ? resolve(*value, key) : std::filesystem::path();
}

std::vector<Section::Path> Section::paths(const std::string& key) const {
  const YamlNode* value = find(key);
  if (!value) return {};
  if (value->kind == YamlNode::Kind::scalar) return {{resolve(*value, key), value}};
  if (value->kind != YamlNode::Kind::list) throw error(*value, key, "expected a list of paths, found " + value->found());
  std::vector<Path> paths;
  for (const YamlNode& item : value->items) paths.push_back({resolve(item, key), &item});
  return paths;
}

}  // namespace hcsmoe
