// What the user types: commands, options, and what ends the program at once.

#include <gtest/gtest.h>

#include <cstdlib>

#include "config/command_line.h"
#include "config/manual.h"
#include "config/names.h"
#include "hcsmoe/error.h"

using namespace hcsmoe;

namespace {

struct Outcome {
  bool go_on = false;
  CommandLine line;
  std::string mistake, out;
};

Outcome read(std::vector<const char*> arguments, bool speaks = true) {
  arguments.insert(arguments.begin(), "hcsmoe_dist");
  Outcome outcome;
  testing::internal::CaptureStdout();
  try {
    outcome.go_on = read_command_line(static_cast<int>(arguments.size()), arguments.data(), speaks, outcome.line);
  } catch (const UserError& error) {
    outcome.mistake = error.what();
  }
  outcome.out = testing::internal::GetCapturedStdout();
  return outcome;
}

void expect_refused(const std::vector<const char*>& arguments, const std::string& part) {
  const Outcome outcome = read(arguments);
  EXPECT_EQ(outcome.out, "");
  EXPECT_NE(outcome.mistake.find(part), std::string::npos) << outcome.mistake;
  EXPECT_NE(outcome.mistake.find("usage: hcsmoe_dist"), std::string::npos) << outcome.mistake;
}

}  // namespace

TEST(CommandLineTest, RunIsTheDefault) {
  const Outcome outcome = read({"config.yaml"});
  EXPECT_TRUE(outcome.go_on) << outcome.mistake;
  EXPECT_EQ(outcome.line.command, Command::run);
  EXPECT_EQ(outcome.line.config, "config.yaml");
  EXPECT_TRUE(outcome.line.overrides.empty());
}

TEST(CommandLineTest, EveryCommand) {
  using enum Command;
  for (const Command command : {run, inspect, collect, plan, apply, evaluate}) {
    const std::string name = to_string(command);
    const Outcome outcome = read({name.c_str(), "config.yaml"});
    EXPECT_TRUE(outcome.go_on) << outcome.mistake;
    EXPECT_EQ(outcome.line.command, command);
  }
}

TEST(CommandLineTest, Trace) {
  EXPECT_EQ(read({"config.yaml", "--trace", "out.json"}).line.trace, "out.json");
  EXPECT_TRUE(read({"config.yaml"}).line.trace.empty());
  expect_refused({"config.yaml", "--trace"}, "--trace");
  expect_refused({"config.yaml", "--trace", ""}, "--trace needs the name of a file");
  expect_refused({"inspect", "config.yaml", "--trace", "out.json"}, "--trace belongs to the commands 'run', 'collect', ");
}

TEST(CommandLineTest, Machine) {
  const Outcome outcome = read({"inspect", "config.yaml", "--machine", "read=3", "--machine", "ranks=4"});
  EXPECT_EQ(outcome.line.machine, (std::vector<std::string>{"read=3", "ranks=4"}));
  expect_refused({"config.yaml", "--machine", "read=3"}, "--machine belongs to the command 'inspect'");
}

TEST(CommandLineTest, CollectAll) {
  EXPECT_TRUE(read({"collect", "config.yaml", "--all"}).line.all);
  EXPECT_TRUE(read({"run", "config.yaml", "--fresh"}).line.fresh);
  EXPECT_FALSE(read({"run", "config.yaml"}).line.fresh);
  EXPECT_FALSE(read({"collect", "config.yaml"}).line.all);
}

TEST(CommandLineTest, OptionsStandAnywhere) {
  const Outcome outcome =
      read({"--set", "calibration.files=[a.txt, b.txt]", "apply", "--plan", "p.json", "config.yaml", "--set=a.b=[c]", "--set", "d=-1"});
  EXPECT_TRUE(outcome.go_on) << outcome.mistake;
  EXPECT_EQ(outcome.line.command, Command::apply);
  EXPECT_EQ(outcome.line.config, "config.yaml");
  EXPECT_EQ(outcome.line.plans, std::vector<std::filesystem::path>{"p.json"});
  EXPECT_EQ(outcome.line.overrides, (std::vector<std::string>{"calibration.files=[a.txt, b.txt]", "a.b=[c]", "d=-1"}));
}

TEST(CommandLineTest, EvaluateTakesSeveralPlans) {
  const Outcome outcome = read({"evaluate", "--plan", "a.json", "config.yaml", "--plan=b.json"});
  EXPECT_TRUE(outcome.go_on) << outcome.mistake;
  EXPECT_EQ(outcome.line.config, "config.yaml");
  EXPECT_EQ(outcome.line.plans, (std::vector<std::filesystem::path>{"a.json", "b.json"}));
}

TEST(CommandLineTest, HelpAndVersion) {
  for (const char* flag : {"--help", "-h"}) {
    const Outcome help = read({flag});
    EXPECT_FALSE(help.go_on);
    EXPECT_EQ(help.mistake, "");
    for (const char* part :
         {"run ", "inspect ", "collect ", "plan ", "apply ", "evaluate ", "verify ", "--original", "--set", "--plan", "mpirun -np 8"}) {
      EXPECT_NE(help.out.find(part), std::string::npos) << part;
    }
  }
  for (const std::string& command : command_names()) {
    for (const std::vector<const char*>& line :
         {std::vector<const char*>{"help", command.c_str()}, {command.c_str(), "--help"}, {command.c_str(), "config.yaml", "-h"}}) {
      const Outcome manual = read(line);
      EXPECT_FALSE(manual.go_on);
      EXPECT_EQ(manual.mistake, "");
      for (const char* part : {"NAME\n", "SYNOPSIS\n", "DESCRIPTION\n", "OPTIONS\n", "FILES\n", "EXIT STATUS\n", "75 ", "EXAMPLES\n"}) {
        EXPECT_NE(manual.out.find(part), std::string::npos) << command << ": " << part;
      }
      EXPECT_EQ(manual.out, manual_of(parse_command(command)));
    }
    EXPECT_NE(help_text().find("\n  " + command + " "), std::string::npos) << command;
  }
  expect_refused({"help", "pln"}, "command 'pln' is not allowed");
  EXPECT_EQ(read({"help"}).out, help_text());
  const Outcome version = read({"--version"});
  EXPECT_FALSE(version.go_on);
  EXPECT_EQ(version.out, "hcsmoe_dist 0.1.0\n");
  EXPECT_EQ(read({"--help"}, false).out, "");
}

TEST(CommandLineTest, EveryOptionBelongsToItsCommandsOnly) {
  using enum Option::Takes;
  for (const Option& option : options()) {
    for (const std::string& command : command_names()) {
      const std::string value = option.takes == assignment ? "a=b"
                                : option.takes == rate     ? "read=1"
                                : option.takes == number   ? "3"
                                                           : "file";
      std::vector<const char*> words = {command.c_str(), "config.yaml", option.name.c_str()};
      if (option.takes != nothing) words.push_back(value.c_str());
      if (belongs(option, parse_command(command))) {
        EXPECT_TRUE(read(words).go_on) << command << " " << option.name << ": " << read(words).mistake;
      } else {
        expect_refused(words, option.name + " belongs to ");
      }
      EXPECT_EQ(manual_of(parse_command(command)).find("  " + usage_of(option)) != std::string::npos,
                belongs(option, parse_command(command)));
    }
  }
}

TEST(CommandLineTest, Json) {
  EXPECT_TRUE(read({"config.yaml", "--json"}).line.json);
  EXPECT_FALSE(read({"config.yaml"}).line.json);
  const Outcome wrong = read({"config.yaml", "--fast", "--json"});
  EXPECT_NE(wrong.mistake, "");
  EXPECT_TRUE(wrong.line.json) << "the mistake is told as JSON";
}

TEST(CommandLineTest, Completion) {
  for (const std::string shell : shells) {
    const Outcome script = read({"--completion", shell.c_str()});
    EXPECT_FALSE(script.go_on);
    EXPECT_EQ(script.mistake, "");
    for (const std::string& word : configuration_keys()) EXPECT_NE(script.out.find(word), std::string::npos) << shell << " " << word;
    for (const std::string& word : command_names()) EXPECT_NE(script.out.find(word), std::string::npos) << shell << " " << word;
    for (const Option& option : options()) EXPECT_NE(script.out.find(option.name.substr(2)), std::string::npos) << shell;
  }
  EXPECT_NE(read({"--completion", "tcsh"}).mistake.find("bash, zsh, fish"), std::string::npos);
}

TEST(CommandLineTest, Mistakes) {
  expect_refused({}, "no configuration file");
  expect_refused({"plan"}, "the command 'plan' needs a configuration file");
  expect_refused({"pln", "config.yaml"},
                 "command 'pln' is not allowed; allowed: run, inspect, collect, plan, apply, evaluate, report, verify");
  expect_refused({"plan", "config.yaml", "more"}, "too many arguments: 'more'");
  expect_refused({"config.yaml", "--fast"}, "--fast");
  expect_refused({"config.yaml", "--set"}, "--set");
  expect_refused({"plan", "config.yaml", "--plan", "p.json"}, "--plan belongs to the commands 'apply', 'evaluate', 'report' and 'verify'");
  expect_refused({"apply", "config.yaml", "--plan", "a.json", "--plan", "b.json"}, "'apply' takes one --plan");
  expect_refused({"report", "config.yaml", "--plan", "a.json", "--plan", "b.json"}, "'report' takes one --plan");
  expect_refused({"verify", "output", "--plan", "a.json", "--plan", "b.json"}, "'verify' takes one --plan");
  expect_refused({"run", "output", "--original", "m"}, "--original belongs to the command 'verify'");
  expect_refused({"verify", "output", "--original", ""}, "--original needs the name of a folder");
  expect_refused({"report", "output", "--sample", "2"}, "--sample belongs to the command 'verify'");
  expect_refused({"verify", "output", "--sample", "0"}, "--sample needs a whole number from 1 on");
  expect_refused({"verify", "output", "--sample", "few"}, "--sample");
  expect_refused({"run", "config.yaml", "--all"}, "--all belongs to the command 'collect'");
  expect_refused({"plan", "config.yaml", "--fresh"}, "--fresh belongs to the commands 'run', 'collect' and 'apply'");
}

TEST(CommandLineTest, OneRankSpeaks) {
  for (const char* variable : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}) unsetenv(variable);
  EXPECT_TRUE(speaks_before_mpi());
  setenv("PMI_RANK", "0", 1);
  EXPECT_TRUE(speaks_before_mpi());
  setenv("PMI_RANK", "3", 1);
  EXPECT_FALSE(speaks_before_mpi());
  setenv("OMPI_COMM_WORLD_RANK", "0", 1);  // mpirun inside a Slurm job: its own number counts
  EXPECT_TRUE(speaks_before_mpi());
  unsetenv("OMPI_COMM_WORLD_RANK");
  unsetenv("PMI_RANK");
}
