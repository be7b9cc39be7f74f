#include "config/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "config/completion.h"
#include "config/manual.h"
#include "config/names.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

constexpr const char* usage = "usage: hcsmoe_dist [COMMAND] config.yaml [--set key.path=value ...]   (hcsmoe_dist --help says more)";

bool is_command(const std::string& word) {
  try {
    parse_command(word);
    return true;
  } catch (const UserError&) {
    return false;
  }
}

UserError mistake(const std::string& what) { return UserError(what + "\n" + usage); }

Command command_named(const std::string& word) {
  try {
    return parse_command(word);
  } catch (const UserError& error) {
    throw mistake("command " + std::string(error.what()));
  }
}

/// The manual of a command where one was named, else the help.
std::string help_for(const std::vector<std::string>& words) {
  const auto command = std::find_if(words.begin(), words.end(), is_command);
  return command == words.end() ? help_text() : manual_of(parse_command(*command));
}

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

}  // namespace

bool speaks_before_mpi() {
  for (const char* variable : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    if (const char* rank = std::getenv(variable)) return std::string(rank) == "0";
  }
  return true;
}

bool read_command_line(int argc, const char* const* argv, bool speaks, CommandLine& line) {
  std::vector<std::string> words;
  std::vector<std::string> plans;
  std::string trace, original, shell;
  // A mistake in the line is told as JSON too.
  line.json = std::any_of(argv, argv + argc, [](const char* word) { return std::string(word) == "--json"; });
  CLI::App app;
  app.set_version_flag("--version", "hcsmoe_dist " HCSMOE_VERSION);
  app.add_option("words", words, "[COMMAND] config.yaml");
  app.add_option("--set", line.overrides, "key.path=value")->allow_extra_args(false);
  app.add_option("--plan", plans, "FILE")->allow_extra_args(false);
  app.add_flag("--all", line.all);
  app.add_flag("--fresh", line.fresh);
  app.add_option("--machine", line.machine, "rate=number")->allow_extra_args(false);
  app.add_flag("--duplicates", line.duplicates);
  app.add_option("--trace", trace, "FILE")->allow_extra_args(false);
  app.add_option("--original", original, "FOLDER")->allow_extra_args(false);
  app.add_option("--sample", line.sample, "N")->allow_extra_args(false);
  app.add_flag("--json", line.json);
  app.add_option("--completion", shell, "SHELL")->allow_extra_args(false);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    if (speaks) print(help_for({argv + 1, argv + argc}));
    return false;
  } catch (const CLI::Success& asked) {  // version
    if (speaks) app.exit(asked);
    return false;
  } catch (const CLI::ParseError& error) {
    throw mistake(error.what());
  }
  if (app.count("--completion") > 0) {
    const std::string script = completion_script(shell);
    if (speaks) print(script);
    return false;
  }
  if (!words.empty() && words[0] == "help" && !std::filesystem::exists(words[0])) {
    if (words.size() > 2) throw mistake("too many arguments: '" + words[2] + "'");
    const std::string text = words.size() == 2 ? manual_of(command_named(words[1])) : help_text();
    if (speaks) print(text);
    return false;
  }

  if (words.size() > 2) throw mistake("too many arguments: '" + words[2] + "'");
  if (words.size() == 2) line.command = command_named(words[0]);
  if (words.empty()) throw mistake("no configuration file given");
  line.config = words.back();
  if (words.size() == 1 && is_command(words[0]) && !std::filesystem::exists(line.config)) {
    throw mistake("the command '" + words[0] + "' needs a configuration file");
  }
  for (const Option& option : options()) {
    if (app.count(option.name) > 0 && !belongs(option, line.command)) throw mistake(option.name + " belongs to " + owners_of(option));
  }
  if (plans.size() > 1 && line.command != Command::evaluate) throw mistake("'" + to_string(line.command) + "' takes one --plan");
  if (app.count("--trace") > 0 && trace.empty()) throw mistake("--trace needs the name of a file");
  if (app.count("--original") > 0 && original.empty()) throw mistake("--original needs the name of a folder");
  if (app.count("--sample") > 0 && line.sample < 1) throw mistake("--sample needs a whole number from 1 on");
  line.original = original;
  line.plans.assign(plans.begin(), plans.end());
  line.trace = trace;
  return true;
}

}  // namespace hcsmoe
