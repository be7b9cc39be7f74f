#include "support/json.h"

#include <algorithm>
#include <iterator>
#include <unordered_set>
#include <utility>
#include <vector>

#include "hcsmoe/error.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kDeepest = 64;
// Up to here a linear search for a duplicate key is faster than a hash set.
constexpr size_t kFewKeys = 16;

// The parser does not tell its handler where it is. An iterator that notes how far it was read does.
struct CountingIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char* at;
  const char** furthest;

  reference operator*() const { return *at; }
  CountingIterator& operator++() {
    *furthest = ++at;
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const CountingIterator& other) const { return at == other.at; }
};

// Text from the file as it may be shown in a message: one line, printable ASCII, not too long.
std::string shown(std::string_view text) {
  constexpr size_t longest = 200;
  static constexpr char digits[] = "0123456789abcdef";
  std::string out;
  for (char c : text.substr(0, longest)) {
    auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
    }
  }
  return text.size() > longest ? out + "..." : out;
}

// Builds the document; throws at once what it refuses.
class Builder {
 public:
  Builder(std::string_view text, const std::string& source_name) : text_(text), source_name_(source_name), furthest_(text.data()) {}

  CountingIterator begin() { return {text_.data(), &furthest_}; }
  CountingIterator end() { return {text_.data() + text_.size(), &furthest_}; }
  Json take() { return std::move(root_); }

  bool null() { return put(nullptr), true; }
  bool boolean(bool value) { return put(value), true; }
  bool number_integer(int64_t value) { return put(value), true; }
  bool number_unsigned(uint64_t value) { return put(value), true; }
  bool number_float(double value, const std::string&) { return put(value), true; }
  bool string(std::string& value) { return put(std::move(value)), true; }
  bool binary(Json::binary_t&) { return false; }  // not in text

  bool start_object(size_t) { return open(Json::object()), true; }
  bool start_array(size_t) { return open(Json::array()), true; }
  bool end_object() { return open_.pop_back(), true; }
  bool end_array() { return open_.pop_back(), true; }

  bool key(std::string& name) {
    Level& level = open_.back();
    auto& members = level.value->get_ref<Json::object_t&>();
    bool duplicate = false;
    if (members.size() < kFewKeys) {
      duplicate = std::any_of(members.begin(), members.end(), [&](const auto& member) { return member.first == name; });
    } else {
      if (level.keys.empty()) {
        for (const auto& member : members) level.keys.insert(member.first);
      }
      duplicate = !level.keys.insert(name).second;
    }
    if (duplicate) refuse("the key \"" + shown(name) + "\" appears twice in one object");
    // The object is a vector in the order of the file; its own insertion searches all members, which is quadratic for a vocabulary.
    members.emplace_back(std::move(name), Json());
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) {
    if (text_.find_first_not_of(" \t\r\n") == std::string_view::npos)
      refuse(text_.empty() ? "the document is empty" : "the document is blank");
    // What the library says, without its own prefix and position: "[json.exception.parse_error.101] parse error at line 1, column 2: ...".
    std::string_view what = error.what();
    if (size_t at = what.find("] "); at != std::string_view::npos) what.remove_prefix(at + 2);
    if (what.starts_with("parse error")) {
      if (size_t at = what.find(": "); at != std::string_view::npos) what.remove_prefix(at + 2);
    }
    refuse(shown(what));
  }

 private:
  struct Level {
    Json* value;
    std::unordered_set<std::string> keys;  // of an object, once it has kFewKeys
  };

  Json* put(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back().value;
    if (parent.is_array()) {
      auto& elements = parent.get_ref<Json::array_t&>();
      return &elements.emplace_back(std::move(value));
    }
    Json& member = parent.get_ref<Json::object_t&>().back().second;
    member = std::move(value);
    return &member;
  }

  // The pointers on the stack stay valid: a value's parent does not grow while the value is open.
  void open(Json container) {
    if (open_.size() == kDeepest) refuse("nested deeper than " + std::to_string(kDeepest) + " levels");
    Json* value = put(std::move(container));
    open_.push_back({value, {}});
  }

  [[noreturn]] void refuse(const std::string& reason) const {
    std::string_view read(text_.data(), static_cast<size_t>(furthest_ - text_.data()));
    auto line = 1 + std::count(read.begin(), read.end(), '\n');
    size_t newline = read.rfind('\n');
    size_t column = newline == std::string_view::npos ? read.size() : read.size() - newline - 1;
    throw UserError(source_name_ + ":" + std::to_string(line) + ":" + std::to_string(std::max<size_t>(column, 1)) +
                    ": invalid JSON: " + reason);
  }

  std::string_view text_;
  const std::string& source_name_;
  const char* furthest_;
  Json root_;
  std::vector<Level> open_;
};

}  // namespace

nlohmann::ordered_json parse_json(std::string_view text, const std::string& source_name) {
  if (text.data() == nullptr) text = "";
  Builder builder(text, source_name);
  Json::sax_parse(builder.begin(), builder.end(), &builder);
  return builder.take();
}

nlohmann::ordered_json read_json(const std::filesystem::path& file, uint64_t max_bytes) {
  return parse_json(read_file(file, max_bytes), file.string());
}

}  // namespace hcsmoe
