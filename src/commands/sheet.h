#pragma once
// What `inspect` prints: lines for people, and the same numbers for machines.

#include <nlohmann/json.hpp>
#include <string>

namespace hcsmoe {

class Sheet {
 public:
  /// The keys of the lines that follow belong to `section` of the document; "": to the document itself.
  void begin(const std::string& section, const std::string& heading = "") {
    section_ = section;
    if (!heading.empty()) text_ += "\n" + heading + "\n";
  }
  void line(const std::string& name, const std::string& value) {
    constexpr size_t width = 34;
    text_ += name + std::string(name.size() < width ? width - name.size() : 0, ' ') + value + "\n";
  }
  void line(const std::string& name, const std::string& value, const std::string& key, nlohmann::ordered_json number) {
    line(name, value);
    set(key, std::move(number));
  }
  void text(const std::string& line) { text_ += line + "\n"; }
  void set(const std::string& key, nlohmann::ordered_json number) { (section_.empty() ? json_ : json_[section_])[key] = std::move(number); }

  const std::string& text() const { return text_; }
  const nlohmann::ordered_json& json() const { return json_; }

 private:
  std::string text_, section_;
  nlohmann::ordered_json json_ = {{"format", "hcsmoe-inspect/1"}};
};

}  // namespace hcsmoe
