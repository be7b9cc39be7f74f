#pragma once
// A section of the configuration ("calibration", or "" for the top level): typed values by key, each checked as it is read. A key that is
// absent or null takes its default.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "config/yaml_node.h"
#include "hcsmoe/error.h"

namespace hcsmoe {

/// One section's name and the keys that it may have.
struct SectionKeys {
  std::string section;
  std::vector<std::string> keys;
};

/// UserError at the first key that `known` does not list: names the nearest known key and the keys allowed in its place. Also where a
/// section is not a mapping.
void check_keys(const YamlNode& root, const std::vector<SectionKeys>& known);

class Section {
 public:
  Section(const YamlNode& root, std::string name) : name_(std::move(name)), node_(name_.empty() ? &root : root.find(name_)) {}

  const YamlNode* find(const std::string& key) const;  // nullptr: absent or null
  std::string full_key(const std::string& key) const { return name_.empty() ? key : name_ + "." + key; }
  /// "config.yaml:7: calibration.length: " + what
  UserError error(const YamlNode& value, const std::string& key, const std::string& what, const std::string& hint = "") const;

  int64_t integer(const std::string& key, int64_t default_value, int64_t least, int64_t most) const;
  uint64_t unsigned_integer(const std::string& key, uint64_t default_value) const;
  std::string text(const std::string& key, const std::string& default_value) const;
  std::filesystem::path path(const std::string& key) const;  // empty if absent
  /// A list of paths, or one path. `value` is where each path was written.
  struct Path {
    std::filesystem::path path;
    const YamlNode* value;
  };
  std::vector<Path> paths(const std::string& key) const;

  /// One of a set of names; `parse` throws UserError that lists them.
  template <class T>
  T choice(const std::string& key, T default_value, T (*parse)(const std::string&)) const {
    const YamlNode* value = find(key);
    if (!value) return default_value;
    try {
      return parse(scalar(*value, key, "a name"));
    } catch (const UserError& refused) {
      throw UserError(value->where + ": " + full_key(key) + ": " + refused.what());
    }
  }

 private:
  const std::string& scalar(const YamlNode& value, const std::string& key, const std::string& expected) const;
  std::filesystem::path resolve(const YamlNode& value, const std::string& key) const;

  std::string name_;
  const YamlNode* node_;  // nullptr: the section is absent
};

/// A whole plain decimal number, without a point.
std::optional<int64_t> parse_integer(const std::string& text);

}  // namespace hcsmoe
