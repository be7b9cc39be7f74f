#pragma once
// The commands: what the program does with a configuration, each on all ranks together. docs/architecture.md shows their flow.

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "hcsmoe/config.h"
#include "hcsmoe/log.h"
#include "hcsmoe/ranks.h"
#include "hcsmoe/stop.h"
#include "hcsmoe/trace.h"

namespace hcsmoe {

/// What the user typed.
struct CommandLine {
  Command command = Command::run;
  std::filesystem::path config;        // verify: or the output folder
  std::vector<std::string> overrides;  // "key.path=value" of each --set, in order
  /// --plan. apply, report: at most one; none: WORK/plan.json. verify: likewise; none: the output's. evaluate: plans to measure without
  /// making them.
  std::vector<std::filesystem::path> plans;
  bool all = false;                  // collect: every statistic, whatever the method needs
  bool fresh = false;                // --fresh: nothing of what earlier runs left in WORK is used
  std::filesystem::path trace;       // --trace: the file; empty: none
  std::vector<std::string> machine;  // inspect: "rate=number" of each --machine
  std::filesystem::path original;    // verify: --original; empty: as the configuration or the work folder says
  int64_t sample = 0;                // verify: --sample, merged experts of a layer that are made again; 0: not given
  bool duplicates = false;           // inspect: reads all experts' weights and says which are equal
  bool json = false;                 // --json: one JSON document on stdout, of what was done or what went wrong
};

/// Whether a command runs the model, on whatever device.type says. The others need no GPU.
inline bool computes(Command command) {
  return command == Command::run || command == Command::collect || command == Command::apply || command == Command::evaluate;
}

/// Collective. Throws what goes wrong; main prints it and chooses the exit code. trace: may be null.
void run_command(const CommandLine&, const Config&, const Ranks&, Log&, Trace* trace, StopRequest&);

/// A trace whose clock starts at one moment on all ranks; null where `file` is empty. UserError: the file cannot be written. Collective.
std::unique_ptr<Trace> start_trace(const std::filesystem::path& file, const Ranks&);
/// All ranks' events as one file, which appears complete or not at all. Nothing where trace is null. Collective.
void write_trace(const Trace* trace, const std::filesystem::path& file, const Ranks&);

}  // namespace hcsmoe
