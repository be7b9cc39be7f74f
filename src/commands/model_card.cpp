// README.md of the output folder, with the plan beside it.

#include "hcsmoe/model_card.h"

#include <nlohmann/json.hpp>

#include "commands/job.h"
#include "hcsmoe/assembly.h"
#include "hcsmoe/error.h"
#include "support/checksums.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t max_card_bytes = 10'000'000;

std::string card(const Job& job, const Plan& plan, bool calibration_is_the_plans) {
  const fs::path model = fs::absolute(job.config.model).lexically_normal();
  const std::string folder = (model.has_filename() ? model : model.parent_path()).string();
  const auto& config = job.checkpoint.config();
  const auto path = config.find("_name_or_path");
  CardFacts facts;
  facts.version = HCSMOE_VERSION;
  facts.model = fs::path(folder).filename().string();
  facts.family = job.model.family;
  facts.base_model = hub_name(folder, path != config.end() && path->is_string() ? path->get<std::string>() : "");
  if (const fs::path original = model / card_name; fs::exists(original)) facts.original_card = read_file(original, max_card_bytes);
  facts.top_k = job.model.routing.top_k;
  facts.model_bytes = job.summary.model_bytes;
  facts.output_bytes = job.summary.output_bytes;
  if (calibration_is_the_plans && !job.config.calibration.files.empty()) facts.calibration = job.config.calibration;
  nlohmann::ordered_json evaluation;
  if (!job.summary.evaluation.empty()) evaluation = evaluation_json(job.summary.evaluation, job.summary.dtype);
  return model_card(facts, plan, evaluation);
}

}  // namespace

void write_card(Job& job, const fs::path& plan_file) {
  job.ranks.on_root([&] {
    try {
      const Plan plan = load_plan(plan_file);
      const fs::path& output = job.config.output;
      const auto write = [&](const std::string& name, const std::string& text) {
        write_file_atomically(output / name, text);
        job.summary.checksums.clear();
        for (const auto& [file, checksum] : add_to_checksums(output, name)) job.summary.checksums.emplace_back(file, checksum);
      };
      write(plan_name, plan_to_json(plan));
      write(card_name, card(job, plan, plan_file == job.config.work / "plan.json"));
    } catch (const std::exception& error) {  // the model is complete: nothing here may take it back
      job.log.warn(std::string("no model card: ") + error.what());
    }
  });
}

}  // namespace hcsmoe
