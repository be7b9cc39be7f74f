#include "config/command_line.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <string>
#include <vector>

#include "config/names.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

constexpr const char* usage = "usage: hcsmoe_dist [COMMAND] config.yaml [--set key.path=value ...]   (hcsmoe_dist --help says more)";

constexpr const char* help = R"(hcsmoe_dist makes a trained Mixture-of-Experts checkpoint smaller, without retraining.

usage: hcsmoe_dist [COMMAND] config.yaml [--set key.path=value ...]
       hcsmoe_dist verify OUTPUT [--original FOLDER]

Commands, each with an example:
  run       everything: statistics, plan, merging, output folder (the default)
              mpirun -np 8 hcsmoe_dist config.yaml
  inspect   what a run would do: family, layers, experts, sizes, memory and disk needed; runs no model
              hcsmoe_dist inspect config.yaml
  collect   only the statistics, into the work folder
              mpirun -np 8 hcsmoe_dist collect config.yaml
  plan      only the plan, from statistics that were collected: another number of experts takes no time
              hcsmoe_dist plan config.yaml --set compression.experts=24 --set compression.linkage=ward
  apply     the output folder from a plan
              mpirun -np 8 hcsmoe_dist apply config.yaml --plan edited-plan.json
  evaluate  perplexity and multiple-choice accuracy of the checkpoint that 'model' names; what a plan would cost, without making it
              mpirun -np 8 hcsmoe_dist evaluate config.yaml --set model=/models/smaller --set evaluation.reference=/models/original
              mpirun -np 8 hcsmoe_dist evaluate config.yaml --plan a.json --plan b.json
  report    report.html: what was merged or dropped in each layer and what it cost, from what the work folder holds; runs no model
              hcsmoe_dist report config.yaml
  verify    checks an output folder against its plan and the original: every file and tensor, merged ones by making a draw of them again
              mpirun -np 8 hcsmoe_dist verify /models/smaller --original /models/original
              hcsmoe_dist verify config.yaml

Options:
  --set key.path=value   sets or overrides a key of the configuration; may be given several times
                         (lists: --set 'calibration.files=[a.txt, b.txt]'; paths are relative to the current folder)
  --all                  collect: every statistic that any method needs; without it, those of the configured one
  --fresh                run, collect, apply: starts over, where an interrupted run with the same configuration would be continued
  --plan FILE            apply, report: the plan; without it, the work folder's plan.json
                         evaluate: a plan to measure beside the model; may be given several times
                         verify: the plan, where the output folder has none
  --original FOLDER      verify: the original, where it has moved or the output folder stands alone
  --sample N             verify: how many merged experts of a layer are made again (without it, all of a model under 1 GiB, else 4);
                         --set compression.seed=N draws others
  --machine RATE=NUMBER  inspect: a rate of the machine that it estimates seconds for, in place of that of a node of eight A100; may be given
                         several times (docs/performance.md lists the rates)
  --trace FILE           every command but inspect: where the time of each rank goes, in Chrome's trace format (chrome://tracing, Perfetto)
  --version              prints the version
  -h, --help             prints this

Exit codes: 0 done, 2 something to mend in the configuration or the files, 75 asked to stop (SIGTERM, SIGUSR1) and saved: the same command goes
on from there, 1 any other failure.
docs/configuration.md describes every key.
)";

bool is_command(const std::string& word) {
  try {
    parse_command(word);
    return true;
  } catch (const UserError&) {
    return false;
  }
}

UserError mistake(const std::string& what) { return UserError(what + "\n" + usage); }

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
  std::string trace, original;
  CLI::App app;
  app.formatter_fn([](const CLI::App*, std::string, CLI::AppFormatMode) { return std::string(help); });
  app.set_version_flag("--version", "hcsmoe_dist " HCSMOE_VERSION);
  app.add_option("words", words, "[COMMAND] config.yaml");
  app.add_option("--set", line.overrides, "key.path=value")->allow_extra_args(false);
  app.add_option("--plan", plans, "FILE")->allow_extra_args(false);
  app.add_flag("--all", line.all);
  app.add_flag("--fresh", line.fresh);
  app.add_option("--machine", line.machine, "rate=number")->allow_extra_args(false);
  app.add_option("--trace", trace, "FILE")->allow_extra_args(false);
  app.add_option("--original", original, "FOLDER")->allow_extra_args(false);
  app.add_option("--sample", line.sample, "N")->allow_extra_args(false);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {  // help or version
    if (speaks) app.exit(asked);
    return false;
  } catch (const CLI::ParseError& error) {
    throw mistake(error.what());
  }

  if (words.size() > 2) throw mistake("too many arguments: '" + words[2] + "'");
  if (words.size() == 2) {
    try {
      line.command = parse_command(words[0]);
    } catch (const UserError& error) {
      throw mistake("command " + std::string(error.what()));
    }
  }
  if (words.empty()) throw mistake("no configuration file given");
  line.config = words.back();
  if (words.size() == 1 && is_command(words[0]) && !std::filesystem::exists(line.config)) {
    throw mistake("the command '" + words[0] + "' needs a configuration file");
  }
  const bool one_plan = line.command == Command::apply || line.command == Command::report || line.command == Command::verify;
  if (!plans.empty() && !one_plan && line.command != Command::evaluate) {
    throw mistake("--plan belongs to the commands 'apply', 'evaluate', 'report' and 'verify'");
  }
  if (plans.size() > 1 && one_plan) throw mistake("'" + to_string(line.command) + "' takes one --plan");
  if (line.all && line.command != Command::collect) throw mistake("--all belongs to the command 'collect'");
  const bool resumes = line.command == Command::run || line.command == Command::collect || line.command == Command::apply;
  if (line.fresh && !resumes) throw mistake("--fresh belongs to the commands 'run', 'collect' and 'apply'");
  if (app.count("--trace") > 0 && trace.empty()) throw mistake("--trace needs the name of a file");
  if (!trace.empty() && line.command == Command::inspect)
    throw mistake("--trace belongs to commands that run: 'inspect' only computes figures");
  if (!line.machine.empty() && line.command != Command::inspect) throw mistake("--machine belongs to the command 'inspect'");
  if (line.command != Command::verify) {
    if (app.count("--original") > 0) throw mistake("--original belongs to the command 'verify'");
    if (app.count("--sample") > 0) throw mistake("--sample belongs to the command 'verify'");
  }
  if (app.count("--original") > 0 && original.empty()) throw mistake("--original needs the name of a folder");
  if (app.count("--sample") > 0 && line.sample < 1) throw mistake("--sample needs a whole number from 1 on");
  line.original = original;
  line.plans.assign(plans.begin(), plans.end());
  line.trace = trace;
  return true;
}

}  // namespace hcsmoe
