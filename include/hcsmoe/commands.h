#pragma once
// The commands: what the program does with a configuration, each on all ranks together. docs/architecture.md shows their flow.

#include <filesystem>
#include <string>
#include <vector>

#include "hcsmoe/config.h"
#include "hcsmoe/log.h"
#include "hcsmoe/ranks.h"

namespace hcsmoe {

/// What the user typed.
struct CommandLine {
  Command command = Command::run;
  std::filesystem::path config;
  std::vector<std::string> overrides;  // "key.path=value" of each --set, in order
  /// --plan. apply: at most one; none: WORK/plan.json. evaluate: plans to measure without making them.
  std::vector<std::filesystem::path> plans;
  bool all = false;  // collect: every statistic, whatever the method needs
};

/// Whether a command runs the model, on whatever device.type says. The others need no GPU.
inline bool computes(Command command) { return command != Command::inspect && command != Command::plan; }

/// Collective. Throws what goes wrong; main prints it and chooses the exit code.
void run_command(const CommandLine&, const Config&, const Ranks&, Log&);

}  // namespace hcsmoe
