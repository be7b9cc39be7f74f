#include "calibration/regex_translation.h"

#include <cctype>
#include <optional>
#include <unordered_map>
#include <vector>

#include "calibration/utf8.h"
#include "hcsmoe/error.h"

namespace hcsmoe {

namespace {

/// Code points that have a property in Unicode 16 and not in Unicode 14, that of PCRE2 10.42, as members of a character class.
const std::unordered_map<std::string_view, const char*>& unicode_additions() {
  static const std::unordered_map<std::string_view, const char*> table = {
#include "calibration/unicode_additions.inc"
  };
  return table;
}

constexpr const char* white_space =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

class Translator {
 public:
  Translator(std::string_view pattern, const JsonPlace& place) : pattern_(pattern), place_(place) {}

  std::string run() {
    while (!at_end()) step();
    return std::move(out_);
  }

 private:
  bool at_end() const { return i_ >= pattern_.size(); }
  char peek(size_t ahead = 0) const { return i_ + ahead < pattern_.size() ? pattern_[i_ + ahead] : '\0'; }
  bool starts_with(std::string_view text) const { return pattern_.substr(i_).starts_with(text); }

  [[noreturn]] void refuse_here(const std::string& what) const {
    refuse(place_, what + " in the regular expression " + std::string(pattern_) + " (byte " + std::to_string(i_) + ")");
  }

  void copy_character() {
    const size_t length = utf8_length(pattern_[i_]);
    out_ += pattern_.substr(i_, length);
    i_ += length;
  }

  void step() {
    switch (peek()) {
      case '\\':
        atom_ = out_.size();
        escape(false);
        break;
      case '[':
        atom_ = out_.size();
        character_class();
        break;
      case '(':
        open_group();
        break;
      case ')':
        if (groups_.empty()) refuse_here("an unmatched )");
        atom_ = groups_.back();
        groups_.pop_back();
        copy_character();
        break;
      case '{':
        interval();
        break;
      case '*':
      case '+':
      case '?':
      case '|':
        atom_.reset();
        copy_character();
        break;
      default:
        atom_ = out_.size();
        copy_character();
    }
  }

  void open_group() {
    groups_.push_back(out_.size());
    if (peek(1) == '*') refuse_here("a verb (*");
    if (peek(1) != '?') return copy_character();
    // (?i) covers the rest of the group in Ruby, alternatives included; only at the very start does PCRE2 agree.
    if (i_ == 0 && starts_with("(?i)")) {
      groups_.pop_back();
      out_ += "(?i)";
      i_ += 4;
      return;
    }
    for (const std::string_view start : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:", "(?-i:"}) {
      if (!starts_with(start)) continue;
      out_ += start;
      i_ += start.size();
      return;
    }
    refuse_here("the group " + std::string(pattern_.substr(i_, 4)));
  }

  /// {n}, {n,}, {,m} or {n,m} after an atom; any other brace stands for itself.
  void interval() {
    size_t end = i_ + 1;
    const auto digits = [&] {
      const size_t begin = end;
      while (end < pattern_.size() && std::isdigit(static_cast<unsigned char>(pattern_[end]))) ++end;
      return std::string(pattern_.substr(begin, end - begin));
    };
    std::string low = digits();
    const bool comma = end < pattern_.size() && pattern_[end] == ',';
    if (comma) ++end;
    const std::string high = comma ? digits() : "";
    const bool closed = end < pattern_.size() && pattern_[end] == '}';
    if (!closed || (low.empty() && high.empty())) {
      atom_ = out_.size();
      out_ += "\\{";
      ++i_;
      return;
    }
    if (!atom_) refuse_here("an interval that follows no atom");
    if (low.empty()) low = "0";
    i_ = end + 1;
    const std::string repeat = "{" + low + (comma ? "," + high : "") + "}";
    const char suffix = peek();
    if (suffix == '+' || (suffix == '?' && !comma)) {
      out_.insert(*atom_, "(?:");
      out_ += repeat + ")" + suffix;
      ++i_;
      if (std::string_view("+?*{").find(peek()) != std::string_view::npos && !at_end()) refuse_here("a third quantifier");
    } else {
      out_ += repeat;
    }
    atom_.reset();
  }

  void character_class() {
    const size_t begin = i_;
    out_ += pattern_[i_++];
    if (peek() == '^') out_ += pattern_[i_++];
    if (peek() == ']') refuse_here("an unescaped ] at the start of a character class");
    while (!at_end() && peek() != ']') {
      if (peek() == '[') refuse_here("a class inside a character class");
      if (starts_with("&&")) refuse_here("the class intersection &&");
      if (peek() == '\\') {
        escape(true);
      } else if (peek() == '-' && peek(1) == '\\' && is_set_escape(peek(2))) {
        out_ += "\\-";  // [a-\s]: the hyphen is itself
        ++i_;
      } else {
        copy_character();
      }
    }
    if (at_end()) {
      i_ = begin;
      refuse_here("a character class without end");
    }
    out_ += pattern_[i_++];
  }

  static bool is_set_escape(char c) { return std::string_view("sSdDpP").find(c) != std::string_view::npos && c != '\0'; }

  void escape(bool in_class) {
    const char kind = peek(1);
    if (i_ + 1 >= pattern_.size()) refuse_here("a backslash at the end");
    switch (kind) {
      case 's':
        i_ += 2;
        return set(white_space, false, in_class);
      case 'S':  // PCRE2's own \S lacks only U+180E
        i_ += 2;
        return set("\\S\\x{180e}", false, in_class);
      case 'd':
      case 'D':
        i_ += 2;
        return set(property_members("Nd"), kind == 'D', in_class);
      case 'p':
      case 'P':
        return property(in_class);
      case 'v':
        i_ += 2;
        out_ += "\\x{b}";
        return;
      case 'u':
        return hexadecimal(2, 4, false);
      case 'x':
        return peek(2) == '{' ? braced_hexadecimal() : hexadecimal(2, 2, true);
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        break;
      case 'A':
      case 'z':
      case 'Z':
        if (in_class) refuse_here(std::string("the escape \\") + kind + " in a character class");
        break;
      default:
        if (std::isalnum(static_cast<unsigned char>(kind))) refuse_here(std::string("the escape \\") + kind);
        if (static_cast<unsigned char>(kind) >= 0x80) {
          ++i_;
          return copy_character();
        }
    }
    out_ += pattern_.substr(i_, 2);
    i_ += 2;
  }

  void hexadecimal(size_t skip, size_t digits, bool ascii_only) {
    const std::string value(pattern_.substr(std::min(i_ + skip, pattern_.size()), digits));
    if (value.size() != digits || value.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos)
      refuse_here("a bad hexadecimal escape");
    if (ascii_only && value[0] > '7') refuse_here("\\x" + value + ", a byte of a character");
    out_ += "\\x{" + value + "}";
    i_ += skip + digits;
  }

  void braced_hexadecimal() {
    const size_t end = pattern_.find('}', i_);
    const size_t digits = end == std::string_view::npos ? 0 : end - i_ - 3;
    if (digits == 0 || digits > 6) refuse_here("a bad hexadecimal escape");
    hexadecimal(3, digits, false);
    ++i_;
  }

  void property(bool in_class) {
    bool negated = peek(1) == 'P';
    const size_t end = pattern_.find('}', i_);
    if (peek(2) != '{' || end == std::string_view::npos) refuse_here("\\p without {NAME}");
    std::string name(pattern_.substr(i_ + 3, end - i_ - 3));
    if (name.starts_with('^')) {
      negated = !negated;
      name.erase(0, 1);
    }
    const std::string members = property_members(name);
    i_ = end + 1;
    set(members, negated, in_class);
  }

  std::string property_members(const std::string& name) const {
    const auto found = unicode_additions().find(name);
    if (found == unicode_additions().end()) refuse_here("the property \\p{" + name + "}");
    const bool script = name.size() > 2;
    return (script ? "\\p{sc:" : "\\p{") + name + "}" + found->second;
  }

  void set(const std::string& members, bool negated, bool in_class) {
    if (!in_class) {
      out_ += (negated ? "[^" : "[") + members + "]";
      return;
    }
    if (negated) refuse_here("a negated set inside a character class");
    out_ += members;
    if (peek() == '-' && peek(1) != ']') {  // [\s-a]: the hyphen is itself
      out_ += "\\-";
      ++i_;
    }
  }

  std::string_view pattern_;
  const JsonPlace& place_;
  size_t i_ = 0;
  std::string out_;
  std::optional<size_t> atom_;  // where in out_ the last atom starts, if a quantifier may follow
  std::vector<size_t> groups_;  // where in out_ the open groups start
};

}  // namespace

std::string translate_regex(std::string_view pattern, const JsonPlace& place) { return Translator(pattern, place).run(); }

}  // namespace hcsmoe
