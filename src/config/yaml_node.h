#pragma once
// YAML as this project reads it: a plain tree in which every value knows where it was written. Stricter than YAML: no duplicate keys,
// no anchors and aliases, no tags, one document, text keys only.

#include <filesystem>
#include <string>
#include <vector>

namespace hcsmoe {

struct YamlNode {
  enum class Kind { null, scalar, list, mapping };
  Kind kind = Kind::null;
  std::string text;               // of a scalar
  bool quoted = false;            // a scalar in quotes is text, never a number
  std::vector<YamlNode> items;    // of a list or a mapping
  std::vector<std::string> keys;  // of a mapping: keys[i] belongs to items[i]
  std::string where;              // "config.yaml:7" (the line of its key, if it has one), or "--set a.b=c"
  std::filesystem::path folder;   // relative paths start here

  const YamlNode* find(const std::string& key) const;  // nullptr: not a mapping, or no such key
  std::string found() const;                           // for messages: "a list", "'12x'"
};

/// Parses a whole document. `name`: the file as the user wrote it; the places in messages are NAME:LINE.
/// UserError: syntax, and everything that is stricter here.
YamlNode parse_yaml(const std::string& text, const std::string& name, const std::filesystem::path& folder);

/// Applies "key.path=value"; the value is parsed as YAML. Mappings on the way are made where there are none.
void apply_override(YamlNode& root, const std::string& override, const std::filesystem::path& folder);

}  // namespace hcsmoe
