#pragma once
// What the program says of itself: the commands and options that there are, the help, and a manual of each command. The parser, the help
// and the shell completion read the same tables.

#include <string>
#include <vector>

#include "hcsmoe/config.h"

namespace hcsmoe {

struct Option {
  /// What follows the name. rate: a rate of the machine = a number.
  enum class Takes { nothing, assignment, file, folder, number, rate, shell };
  std::string name;  // "--set"
  Takes takes = Takes::nothing;
  std::vector<Command> commands;  // that it belongs to; empty: all
  std::string help;               // lines, without indent
};
const std::vector<Option>& options();
/// "--set key.path=value"
std::string usage_of(const Option&);
bool belongs(const Option&, Command);
/// "the commands 'apply' and 'report'", "the command 'collect'"
std::string owners_of(const Option&);

inline constexpr const char* shells[] = {"bash", "zsh", "fish"};
inline constexpr const char* machine_rates[] = {"ranks", "half", "single", "efficiency", "read", "write", "copy", "broadcast", "reduce"};

/// One line: what the command does.
std::string purpose_of(Command);
/// What `hcsmoe_dist --help` prints.
std::string help_text();
/// What `hcsmoe_dist help COMMAND` prints: a manual page as plain text.
std::string manual_of(Command);

}  // namespace hcsmoe
