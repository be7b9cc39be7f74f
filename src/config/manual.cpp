#include "config/manual.h"

#include <algorithm>

#include "config/names.h"

namespace hcsmoe {
namespace {

using enum Command;

struct Manual {
  Command command;
  std::string purpose;      // one line
  std::string description;  // paragraphs of lines
  std::string needs;        // keys of the configuration
  std::string files;        // read and written
  std::string examples;
  std::string json;  // what --json prints
};

const std::string run_json = "The content of WORK/run.json: recipe, fingerprints, seconds of each stage, bytes, checksums, measurements.\n";

const std::vector<Manual>& manuals() {
  static const std::vector<Manual> all = {
      {run, "everything: statistics, plan, merging, output folder (the default)",
       "Runs the model once over the calibration text, layer by layer. As soon as a layer's statistics are known, its experts are grouped "
       "or\n"
       "chosen, merged, and written; the layers are then put together as a checkpoint that stock software loads. If evaluation.perplexity\n"
       "or evaluation.tasks name files, the original and the output are measured on them at the end.\n\n"
       "What an earlier run has left in the work folder and is still valid is used again: a run that was interrupted goes on where it "
       "was,\n"
       "and another number of experts takes the statistics that are there. The result is the same on any number of ranks and threads.\n",
       "model, output, calibration.files, compression.experts",
       "OUTPUT                    the checkpoint, with report.html and checksums.xxh128; there when it is complete, OUTPUT.partial before\n"
       "WORK/plan.json            which experts became one, with which weights\n"
       "WORK/statistics/, shards/ of each layer\n"
       "WORK/run.json             what the run did and took\n"
       "WORK/evaluation.json      what was measured\n"
       "WORK/log/rank_N.txt       the log of each rank\n",
       "mpirun -np 8 hcsmoe_dist config.yaml\n"
       "mpirun -np 8 hcsmoe_dist run config.yaml --set compression.experts=24 --set output=/models/smaller\n"
       "hcsmoe_dist config.yaml --json > run.json\n",
       run_json},
      {inspect, "what a run would do: family, layers, experts, sizes, usage, memory and disk needed; runs no model",
       "Reads the headers of the checkpoint, and the statistics of the work folder where there are any. Prints the model's sizes, what a "
       "rank\n"
       "holds in memory, what numbers of experts a layer give what size, the disk needed and what is free, the seconds that a run would "
       "take\n"
       "on a given machine, and of each layer how evenly its experts are used and which of them are alike.\n\n"
       "Usage is the share of all choices of the router on the calibration text. Gini is 0 where all experts are used alike, and near 1 "
       "where\n"
       "one does all the work. Alike are two experts whose mean outputs o on the calibration text differ by less than 1 %:\n"
       "|o_1 - o_2| < 0.01 max(|o_1|, |o_2|). With --duplicates all experts are read, and those of equal weights, byte for byte, are "
       "named.\n",
       "model, compression.experts", "WORK/statistics/          read, where it is there; nothing is written\n",
       "hcsmoe_dist inspect config.yaml\n"
       "hcsmoe_dist inspect config.yaml --set compression.experts=0.25 --machine ranks=2 --machine read=3.5\n"
       "hcsmoe_dist inspect config.yaml --json | jq .sizes\n",
       "All numbers of the text, bytes and seconds unrounded: model, a_rank, sizes, usage, duplicates, output, disk, cost.\n"},
      {collect, "only the statistics, into the work folder",
       "Runs the model once over the calibration text and saves of each layer what `plan` needs, or, with --all, what any method needs. "
       "What the\n"
       "work folder holds of the same checkpoint and text is not collected again.\n",
       "model, work or output, calibration.files",
       "WORK/statistics/          one HDF5 file a layer\n"
       "WORK/calibration.npy      the token ids\n"
       "WORK/run.json             what it took\n",
       "mpirun -np 8 hcsmoe_dist collect config.yaml\n"
       "mpirun -np 8 hcsmoe_dist collect config.yaml --all\n",
       run_json},
      {Command::plan, "only the plan, from statistics that were collected: another number of experts takes no time",
       "Decides which experts of each layer become one and with which weights, and writes it down. Runs no model: any number of plans can "
       "be\n"
       "made from one collection. The file is meant to be read, and may be edited by hand before `apply`.\n",
       "model, work or output, compression.experts",
       "WORK/statistics/          read\n"
       "WORK/plan.json            written\n",
       "hcsmoe_dist plan config.yaml --set compression.experts=24 --set compression.linkage=ward\n"
       "hcsmoe_dist plan config.yaml --set compression.method=reap --json\n",
       "A summary: the plan's file and fingerprint, the recipe, and of each layer the number of clusters, the largest, those of one expert "
       "and\n"
       "the dropped experts.\n"},
      {apply, "the output folder from a plan",
       "Merges the experts as the plan says and writes the checkpoint. Needs no calibration text, unless the plan's recipe fits the router "
       "or the\n"
       "experts to tokens; then it must be the text that the plan was made on.\n",
       "model, output",
       "PLAN                      read: --plan FILE, else WORK/plan.json\n"
       "OUTPUT, WORK/run.json     as of `run`\n",
       "mpirun -np 8 hcsmoe_dist apply config.yaml\n"
       "mpirun -np 8 hcsmoe_dist apply config.yaml --plan edited-plan.json\n",
       run_json},
      {evaluate, "perplexity and multiple-choice accuracy of the checkpoint that 'model' names; what a plan would cost, without making it",
       "Measures perplexity on text, accuracy on multiple-choice questions as EleutherAI's lm-evaluation-harness does, and, where\n"
       "evaluation.reference names the original or --plan a plan, how far each model is from the first: KL divergence and top-1 "
       "agreement.\n"
       "Every value has its standard error. The models pass through memory layer by layer, so they may be larger than it.\n",
       "model, and evaluation.perplexity or evaluation.tasks",
       "WORK/evaluation.json      the results, if there is a work folder\n"
       "WORK/evaluation_items.jsonl  the log-likelihoods of every choice\n",
       "mpirun -np 8 hcsmoe_dist evaluate config.yaml --set model=/models/smaller --set evaluation.reference=/models/original\n"
       "mpirun -np 8 hcsmoe_dist evaluate config.yaml --plan a.json --plan b.json\n",
       "The content of evaluation.json.\n"},
      {report, "report.html: what was merged or dropped in each layer and what it cost, from what the work folder holds; runs no model",
       "Makes one self-contained page from the plan, and from the statistics, shards, run.json and evaluation.json as far as they are "
       "there.\n"
       "`run` and `apply` make it by themselves.\n",
       "model, work or output",
       "PLAN                      read: --plan FILE, else WORK/plan.json\n"
       "WORK/report.html          written; also OUTPUT/report.html, where the output is there\n",
       "hcsmoe_dist report config.yaml\n", "Where the page and its plan lie: report, plan.\n"},
      {verify,
       "checks an output folder against its plan and the original: every file and tensor, merged ones by making a draw of them again",
       "Takes the output folder, or the configuration that made it. Compares every file with the checksums that the folder carries, every\n"
       "tensor's name, shape and type with what plan and original make, untouched tensors bit by bit, and a draw of the merged ones with\n"
       "what merging makes again. Blocks that were fitted to calibration text are compared with the shards in the work folder, where it\n"
       "is there. Says what was checked, what could not be and why; ends with 2 if anything deviates.\n",
       "none, with an output folder; with a configuration model and output",
       "OUTPUT                    read; nothing is written\n"
       "WORK/shards/              read, where they are there\n",
       "mpirun -np 8 hcsmoe_dist verify /models/smaller --original /models/original\n"
       "hcsmoe_dist verify config.yaml\n",
       "{\"checked\": [...], \"unchecked\": [...]}, lines as in the log; with deviations an error.\n"},
  };
  return all;
}

const Manual& manual(Command command) {
  return *std::find_if(manuals().begin(), manuals().end(), [&](const Manual& m) { return m.command == command; });
}

std::string indented(const std::string& text, size_t width) {
  std::string result;
  for (size_t from = 0; from < text.size();) {
    const size_t end = std::min(text.find('\n', from), text.size());
    if (end > from) result += std::string(width, ' ') + text.substr(from, end - from);
    result += '\n';
    from = end + 1;
  }
  return result;
}

std::string padded(std::string text, size_t width) {
  text.resize(std::max(width, text.size()), ' ');
  return text;
}

/// Name and help side by side, the help's lines under each other.
std::string listed(const std::string& name, const std::string& help) {
  constexpr size_t column = 25;
  const std::string lines = indented(help, column);
  return name.size() + 3 < column ? "  " + padded(name, column - 2) + lines.substr(column) : "  " + name + "\n" + lines;
}

const std::string exit_status =
    "0    done\n"
    "2    something to mend in the configuration or the files; the message says what, where and how\n"
    "75   asked to stop (SIGTERM, SIGUSR1) and saved: the same command goes on from there\n"
    "1    any other failure\n"
    "Where a rank, a node or mpirun itself dies, mpirun's own code.\n";

}  // namespace

const std::vector<Option>& options() {
  using enum Option::Takes;
  static const std::vector<Option> all = {
      {"--set",
       assignment,
       {},
       "sets or overrides a key of the configuration; may be given several times\n"
       "(lists: --set 'calibration.files=[a.txt, b.txt]'; paths are relative to the current folder)"},
      {"--all", nothing, {collect}, "every statistic that any method needs; without it, those of the configured one"},
      {"--fresh", nothing, {run, collect, apply}, "starts over, where an interrupted run with the same configuration would be continued"},
      {"--plan",
       file,
       {apply, evaluate, report, verify},
       "apply, report: the plan; without it, the work folder's plan.json\n"
       "evaluate: a plan to measure beside the model; may be given several times\n"
       "verify: the plan, where the output folder has none"},
      {"--original", folder, {verify}, "the original, where it has moved or the output folder stands alone"},
      {"--sample",
       number,
       {verify},
       "how many merged experts of a layer are made again (without it, all of a model under 1 GiB, else 4);\n"
       "--set compression.seed=N draws others"},
      {"--machine",
       rate,
       {inspect},
       "a rate of the machine that seconds are estimated for, in place of that of a node of eight A100; may be\n"
       "given several times (docs/performance.md lists the rates)"},
      {"--duplicates", nothing, {inspect}, "reads all experts, and names those whose weights are equal"},
      {"--trace",
       file,
       {run, collect, Command::plan, apply, evaluate, report, verify},
       "where the time of each rank goes, in Chrome's trace format (chrome://tracing, Perfetto)"},
      {"--json",
       nothing,
       {},
       "one JSON document on stdout and nothing else: the results, or {\"error\", \"exit_code\"}; the log is on stderr"},
  };
  return all;
}

std::string usage_of(const Option& option) {
  using enum Option::Takes;
  switch (option.takes) {
    case assignment:
      return option.name + " key.path=value";
    case file:
      return option.name + " FILE";
    case rate:
      return option.name + " RATE=NUMBER";
    case folder:
      return option.name + " FOLDER";
    case number:
      return option.name + " N";
    case shell:
      return option.name + " SHELL";
    case nothing:
      break;
  }
  return option.name;
}

bool belongs(const Option& option, Command command) {
  return option.commands.empty() || std::find(option.commands.begin(), option.commands.end(), command) != option.commands.end();
}

std::string owners_of(const Option& option) {
  std::string text = option.commands.size() == 1 ? "the command " : "the commands ";
  for (size_t i = 0; i < option.commands.size(); ++i) {
    if (i > 0) text += i + 1 == option.commands.size() ? " and " : ", ";
    text += "'" + to_string(option.commands[i]) + "'";
  }
  return text;
}

std::string purpose_of(Command command) { return manual(command).purpose; }

std::string help_text() {
  std::string text =
      "hcsmoe_dist makes a trained Mixture-of-Experts checkpoint smaller, without retraining.\n\n"
      "usage: hcsmoe_dist [COMMAND] config.yaml [--set key.path=value ...]\n\n"
      "Commands, each with an example (hcsmoe_dist help COMMAND: its manual):\n";
  for (const Manual& m : manuals()) {
    text += "  " + padded(to_string(m.command), 10) + m.purpose + "\n";
    text += "              " + m.examples.substr(0, m.examples.find('\n')) + "\n";
  }
  text += "\nOptions:\n";
  for (const Option& option : options()) {
    std::string help = option.help;
    if (!option.commands.empty() && option.name != "--plan") {
      std::string names;
      for (const Command command : option.commands) names += (names.empty() ? "" : ", ") + to_string(command);
      help = names + ": " + help;
    }
    text += listed(usage_of(option), help);
  }
  text +=
      listed("--completion SHELL", "prints a script that completes all this in bash, zsh or fish: source <(hcsmoe_dist --completion bash)");
  text += listed("--version", "prints the version");
  text += listed("-h, --help", "prints this; after a command, the command's manual");
  return text + "\nExit codes:\n" + indented(exit_status, 2) + "docs/configuration.md describes every key.\n";
}

std::string manual_of(Command command) {
  const Manual& m = manual(command);
  const std::string name = to_string(command);
  const std::string word = command == run ? "[run]" : name;
  std::string text = "NAME\n    hcsmoe_dist " + name + " - " + m.purpose + "\n\n";
  text += "SYNOPSIS\n    hcsmoe_dist " + word + " config.yaml";
  std::string list;
  for (const Option& option : options()) {
    if (!belongs(option, command)) continue;
    text += " [" + usage_of(option) + "]" + (option.name == "--set" || option.name == "--machine" ? "..." : "");
    list += listed(usage_of(option), option.help);
  }
  text += "\n    mpirun -np RANKS hcsmoe_dist " + word + " config.yaml ...\n\n";
  text += "DESCRIPTION\n" + indented(m.description, 4) + "\n";
  text += "CONFIGURATION\n    Needed keys: " + m.needs + ".\n    docs/configuration.md describes every key.\n\n";
  text += "OPTIONS\n" + indented(list, 2) + "\n";
  text += "FILES\n    WORK is the key 'work', or OUTPUT.work.\n" + indented(m.files, 4) + "\n";
  text += "JSON\n    With --json stdout is one document:\n" + indented(m.json, 4) +
          "    After a mistake or a failure: {\"error\": TEXT, \"exit_code\": NUMBER}.\n\n";
  text +=
      "ENVIRONMENT\n    NO_COLOR, TERM: nothing to switch off. The program writes no colours and no escape codes, on a terminal a "
      "carriage\n"
      "    return for the bar of progress, and elsewhere (or with TERM=dumb) plain lines only.\n\n";
  text += "EXIT STATUS\n" + indented(exit_status, 4) + "\n";
  return text + "EXAMPLES\n" + indented(m.examples, 4);
}

}  // namespace hcsmoe
