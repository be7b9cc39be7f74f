#include "config/yaml_node.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <map>
#include <optional>
#include <sstream>

#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

/// Builds the tree from the parser's events: they carry line numbers and anchors, which YAML::Node forgets or expands.
class TreeBuilder : public YAML::EventHandler {
 public:
  /// where: the place of every value if not empty (--set), else NAME:LINE.
  TreeBuilder(std::string name, std::string where, std::filesystem::path folder)
      : name_(std::move(name)), where_(std::move(where)), folder_(std::move(folder)) {}

  YamlNode root;

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_anchor(mark, anchor);
    if (awaits_key()) throw UserError(place(mark) + ": a key is missing before ':', or is null");
    add(mark, YamlNode::Kind::null);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { refuse_anchor(mark, 1); }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, const std::string& value) override {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    if (awaits_key()) return add_key(mark, value);
    YamlNode& node = add(mark, YamlNode::Kind::scalar);
    node.text = value;
    node.quoted = tag == "!";
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YAML::EmitterStyle::value) override {
    start(mark, tag, anchor, YamlNode::Kind::list);
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YAML::EmitterStyle::value) override {
    start(mark, tag, anchor, YamlNode::Kind::mapping);
  }
  void OnMapEnd() override { open_.pop_back(); }

 private:
  struct Open {
    YamlNode* node;  // valid while it is open: its parent adds nothing meanwhile
    std::string path;
    std::string key_place;
    std::map<std::string, std::string> places;  // of the keys so far
  };

  std::string place(const YAML::Mark& mark) const { return where_.empty() ? name_ + ":" + std::to_string(mark.line + 1) : where_; }
  bool awaits_key() const {
    return !open_.empty() && open_.back().node->kind == YamlNode::Kind::mapping &&
           open_.back().node->keys.size() == open_.back().node->items.size();
  }
  void refuse_anchor(const YAML::Mark& mark, YAML::anchor_t anchor) const {
    if (anchor != 0) throw UserError(place(mark) + ": YAML anchors and aliases (& and *) are not supported", "write the value out");
  }
  void refuse_tag(const YAML::Mark& mark, const std::string& tag) const {
    if (!tag.empty() && tag != "?" && tag != "!") {
      throw UserError(place(mark) + ": YAML tags (here " + tag + ") are not supported", "write the value without the tag");
    }
  }
  void add_key(const YAML::Mark& mark, const std::string& key) {
    Open& mapping = open_.back();
    mapping.key_place = place(mark);
    const auto [first, fresh] = mapping.places.emplace(key, mapping.key_place);
    if (!fresh) {
      throw UserError(mapping.key_place + ": key '" + mapping.path + key + "' is given twice; first at " + first->second,
                      "keep one of the two");
    }
    mapping.node->keys.push_back(key);
  }
  YamlNode& add(const YAML::Mark& mark, YamlNode::Kind kind) {
    YamlNode* node = &root;
    node->where = place(mark);
    if (!open_.empty()) {
      Open& parent = open_.back();
      node = &parent.node->items.emplace_back();
      node->where = parent.node->kind == YamlNode::Kind::mapping ? parent.key_place : place(mark);
    }
    node->kind = kind;
    node->folder = folder_;
    return *node;
  }
  void start(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YamlNode::Kind kind) {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    if (awaits_key()) throw UserError(place(mark) + ": a list or a mapping stands where a key must; is a bracket not closed?");
    std::string path;
    if (!open_.empty()) {
      const Open& parent = open_.back();
      path = parent.node->kind == YamlNode::Kind::mapping ? parent.path + parent.node->keys.back() + "." : parent.path;
    }
    YamlNode& node = add(mark, kind);
    open_.push_back({&node, path, "", {}});
  }

  std::string name_, where_;
  std::filesystem::path folder_;
  std::vector<Open> open_;
};

YamlNode parse(const std::string& text, const std::string& name, const std::string& where, const std::filesystem::path& folder) {
  TreeBuilder builder(name, where, folder);
  builder.root.where = where.empty() ? name + ":1" : where;
  builder.root.folder = folder;
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    parser.HandleNextDocument(builder);
    TreeBuilder second(name, where, folder);
    if (parser.HandleNextDocument(second)) {
      throw UserError(second.root.where + ": a second YAML document starts here ('---'); one is expected");
    }
  } catch (const YAML::Exception& error) {
    const std::string place = where.empty() ? name + ":" + std::to_string(error.mark.line + 1) : where;
    throw UserError(place + ": not valid YAML: " + error.msg +
                    (where.empty() ? " (column " + std::to_string(error.mark.column + 1) + ")" : ""));
  }
  return std::move(builder.root);
}

}  // namespace

const YamlNode* YamlNode::find(const std::string& key) const {
  const auto found_key = std::find(keys.begin(), keys.end(), key);
  return found_key == keys.end() ? nullptr : &items[static_cast<size_t>(found_key - keys.begin())];
}

std::string YamlNode::found() const {
  constexpr size_t longest = 80;
  switch (kind) {
    case Kind::null:
      return "nothing";
    case Kind::list:
      return "a list";
    case Kind::mapping:
      return "a mapping";
    case Kind::scalar:
      break;
  }
  const std::string shown = text.size() > longest ? text.substr(0, longest) + "..." : text;
  return quoted ? "the text \"" + shown + "\"" : "'" + shown + "'";
}

YamlNode parse_yaml(const std::string& text, const std::string& name, const std::filesystem::path& folder) {
  return parse(text, name, "", folder);
}

void apply_override(YamlNode& root, const std::string& override, const std::filesystem::path& folder) {
  const std::string where = "--set " + override;
  const size_t equals = override.find('=');
  if (equals == std::string::npos || equals == 0) throw UserError(where + ": expected key.path=value, as in --set compression.experts=30");
  const std::string path = override.substr(0, equals);
  YamlNode value = parse(override.substr(equals + 1), "--set", where, folder);

  YamlNode* node = &root;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    const std::string key = path.substr(begin, end - begin);
    if (key.empty()) throw UserError(where + ": '" + path + "' has an empty part", "as in --set compression.experts=30");
    if (node->kind != YamlNode::Kind::mapping) {
      *node = YamlNode{};
      node->kind = YamlNode::Kind::mapping;
      node->where = where;
      node->folder = folder;
    }
    auto found_key = std::find(node->keys.begin(), node->keys.end(), key);
    if (found_key == node->keys.end()) {
      node->keys.push_back(key);
      YamlNode& added = node->items.emplace_back();
      added.where = where;
      found_key = std::prev(node->keys.end());
    }
    node = &node->items[static_cast<size_t>(found_key - node->keys.begin())];
    begin = end + 1;
  }
  *node = std::move(value);
}

}  // namespace hcsmoe
