#include "commands/reconstruction_json.h"

#include <nlohmann/json.hpp>

#include "hcsmoe/error.h"

namespace hcsmoe {

using nlohmann::ordered_json;

ordered_json reconstruction_json(const ReconstructionReport& report) {
  ordered_json steps = ordered_json::array();
  for (const ReconstructionStep& step : report.steps) {
    steps.push_back({{"step", step.what}, {"error", step.error}, {"kept", step.kept}, {"seconds", step.seconds}});
  }
  return {{"layer", report.layer}, {"start_error", report.start_error}, {"error", report.error}, {"steps", steps}};
}

ReconstructionReport reconstruction_from_json(const ordered_json& json, const std::string& source_name) {
  try {
    ReconstructionReport report{json.at("layer").get<int64_t>(), json.at("start_error").get<double>(), json.at("error").get<double>(), {}};
    for (const ordered_json& step : json.at("steps")) {
      report.steps.push_back({step.at("step").get<std::string>(), step.at("error").get<double>(), step.at("kept").get<bool>(),
                              step.at("seconds").get<double>()});
    }
    return report;
  } catch (const nlohmann::json::exception&) {
    throw UserError(source_name + ": not a report of a reconstruction", "start over: --fresh");
  }
}

}  // namespace hcsmoe
