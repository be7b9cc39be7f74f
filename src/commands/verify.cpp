// verify: an output folder against its plan and the original.

#include "hcsmoe/verification.h"

#include <nlohmann/json.hpp>

#include "commands/job.h"
#include "commands/result.h"
#include "hcsmoe/assembly.h"
#include "hcsmoe/error.h"
#include "support/files.h"
#include "support/json.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;

constexpr size_t most_deviations = 20;
constexpr uint64_t max_card_bytes = 10'000'000;

/// Where the original is: as the user says, else as the run that made the output noted in its work folder. The output itself names no
/// folder of the machine that made it.
fs::path original_of(const CommandLine& line, const Config& config) {
  const std::string hint = "name the folder of the original: --original FOLDER, or `model` in a configuration";
  fs::path original = !line.original.empty() ? line.original : config.model;
  if (original.empty()) {
    const fs::path record = config.work / "job.json";
    if (fs::exists(record)) {
      const auto json = read_json(record);
      if (json.is_object() && json.contains("model") && json["model"].is_string()) original = json["model"].get<std::string>();
    }
  }
  if (original.empty()) throw UserError("where is the original that " + config.output.string() + " was made from?", hint);
  if (!fs::is_directory(original)) throw UserError("no folder " + original.string() + ", the original of " + config.output.string(), hint);
  return original;
}

/// The plan that the output was made by, on every rank; nothing where it is not one: what is wrong with it is a deviation.
std::optional<Plan> plan_of(const Job& job, Findings& findings) {
  const fs::path file = job.line.plans.empty() ? job.config.output / plan_name : job.line.plans.front();
  std::string text;
  job.ranks.on_root([&] {
    try {
      if (!fs::exists(file)) throw UserError("no plan at " + file.string() + ": name the one that the output was made by (--plan FILE)");
      const Plan plan = load_plan(file);
      check_plan(plan, job.model, file.string());
      if (!plan.origin.checkpoint.empty() && plan.origin.checkpoint != job.summary.origin.checkpoint) {
        findings.deviations.push_back("the original " + job.config.model.string() +
                                      " is not the one that the plan was made from: fingerprint " + job.summary.origin.checkpoint +
                                      ", in the plan " + plan.origin.checkpoint);
      }
      const fs::path card = job.config.output / card_name;
      if (job.line.plans.empty() && fs::exists(card)) {
        const std::string fingerprint = plan_fingerprint(plan);
        if (read_file(card, max_card_bytes).find(fingerprint) == std::string::npos) {
          findings.deviations.push_back(std::string(plan_name) + " is not the plan that " + card_name +
                                        " tells of: it has the fingerprint " + fingerprint);
        }
      }
      text = plan_to_json(plan);
    } catch (const UserError& error) {
      findings.deviations.emplace_back(error.what());
      findings.unchecked.emplace_back("config.json, tensors: there is no valid plan to check them against");
    }
  });
  job.ranks.broadcast(text, 0);
  if (text.empty()) return std::nullopt;
  return plan_from_json(text, "the plan of rank 0");
}

void tell(const Job& job, const Findings& findings) {
  job.ranks.on_root([&] {
    for (const std::string& line : findings.checked) job.log.info(line);
    for (const std::string& line : findings.unchecked) job.log.info("not checked: " + line);
    const size_t count = findings.deviations.size();
    if (count == 0) {
      job.log.info(job.config.output.string() + " holds what its plan makes of " + job.config.model.string());
      return;
    }
    std::string text = job.config.output.string() + ": " + std::to_string(count) + (count == 1 ? " deviation" : " deviations");
    for (size_t i = 0; i < std::min(count, most_deviations); ++i) text += "\n  " + findings.deviations[i];
    if (count > most_deviations) text += "\n  and " + std::to_string(count - most_deviations) + " more";
    throw UserError(text);
  });
}

}  // namespace

void verify(const CommandLine& line, const Config& given, const Ranks& ranks, Log& log, Trace* trace, StopRequest& stop) {
  Config config = given;
  ranks.on_all([&] {
    if (!fs::is_directory(config.output)) throw UserError("no output folder " + config.output.string());
    config.model = original_of(line, config);
  });
  Job job = open_job(line, config, ranks, log, trace, stop);
  Findings findings;
  job.summary.stage("verify", [&] {
    verify_files(ranks, config.output, trace, findings);
    if (const std::optional<Plan> plan = plan_of(job, findings)) {
      const OutputToVerify output{job.checkpoint, job.model, *plan, config.output, config.work, line.sample, config.compression.seed};
      verify_companions(ranks, output, trace, findings);
      verify_tensors(ranks, output, trace, findings);
    }
  });
  tell(job, findings);
  job.ranks.on_root([&] {
    if (!line.json) return;
    job.result = nlohmann::ordered_json{{"checked", findings.checked}, {"unchecked", findings.unchecked}}.dump(2);
    print_result(job);
  });
}

}  // namespace hcsmoe
