// report, and the page that ends `run` and `apply`.

#include "hcsmoe/report.h"

#include <ATen/ops/empty.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "commands/job.h"
#include "hcsmoe/assembly.h"
#include "hcsmoe/error.h"
#include "support/files.h"
#include "support/json.h"

namespace hcsmoe {
namespace {

using nlohmann::ordered_json;

std::string last_part(const std::filesystem::path& path) {
  const auto absolute = std::filesystem::absolute(path).lexically_normal();
  return (absolute.has_filename() ? absolute : absolute.parent_path()).filename().string();
}

at::Tensor shard_tensor(const ShardReader& shard, const std::string& name) {
  const TensorInfo& info = shard.info(name);
  at::Tensor tensor = at::empty(info.shape, info.dtype.torch);
  auto* out = static_cast<std::byte*>(tensor.mutable_data_ptr());
  shard.read(name, [&](std::span<const std::byte> piece) {
    std::memcpy(out, piece.data(), piece.size());
    out += piece.size();
  });
  return tensor;
}

/// What the layer's shard holds, if it was made by this plan.
CompressedRouter compressed_router(const Job& job, const LayerPlan& plan) {
  const auto file = shard_file(job.config.work, plan.layer);
  if (!std::filesystem::exists(file)) return {};
  const ShardReader shard(file);
  const bool of_plan = shard.origin().layer_plan.starts_with(plan_fingerprint({{}, {}, {plan}}));
  if (!of_plan || shard.origin().checkpoint != job.summary.origin.checkpoint) return {};
  CompressedRouter router{shard_tensor(shard, tensor_name(job.model.names.router, plan.layer)), {}};
  const std::string& bias = job.model.names.correction_bias;
  if (!bias.empty()) router.correction_bias = shard_tensor(shard, tensor_name(bias, plan.layer));
  return router;
}

/// run.json or evaluation.json in WORK; null where there is none.
ordered_json work_json(const Job& job, const std::string& name, const std::string& format, std::vector<std::string>& notes) {
  const auto file = job.config.work / name;
  if (!std::filesystem::exists(file)) return nullptr;
  ordered_json json = read_json(file);
  if (json.is_object() && json.contains("format") && json["format"] == format) return json;
  notes.push_back(name + " in the work folder is not one that this version writes: left out.");
  return nullptr;
}

/// The measurements of exactly this output and its original, from the run or from a later `evaluate`.
ordered_json evaluation_of(const Job& job, const ordered_json& run, std::vector<std::string>& notes) {
  if (run.is_object() && run.contains("evaluation")) return run["evaluation"];
  ordered_json json = work_json(job, "evaluation.json", "hcsmoe-evaluation/1", notes);
  if (json.is_null() || job.config.output.empty()) return nullptr;
  const auto is = [](const ordered_json& model, const std::filesystem::path& folder) {
    std::error_code ignored;
    return !model.contains("plan") && std::filesystem::equivalent(model["folder"].get<std::string>(), folder, ignored);
  };
  const ordered_json& models = json["models"];
  if (models.size() == 2 && is(models[0], job.config.model) && is(models[1], job.config.output)) return json;
  return nullptr;
}

std::string page(const Job& job, const Plan& plan) {
  ReportFacts facts;
  facts.version = HCSMOE_VERSION;
  facts.model = last_part(job.config.model);
  facts.family = job.model.family;
  if (!job.config.output.empty()) facts.output = last_part(job.config.output);
  facts.layers = job.model.layers;
  facts.moe_layers = static_cast<int64_t>(plan.layers.size());
  facts.top_k = job.model.routing.top_k;
  facts.model_bytes = job.checkpoint.total_bytes();

  ordered_json run = work_json(job, "run.json", "hcsmoe-run/1", facts.notes);
  if (run.is_object() && (!run.contains("plan") || run["plan"] != plan_fingerprint(plan))) {
    facts.notes.push_back("The last run in the work folder was not of this plan: what it took and measured is left out.");
    run = nullptr;
  }
  if (run.is_object() && run["bytes"].contains("output")) facts.output_bytes = run["bytes"]["output"];
  ordered_json evaluation = evaluation_of(job, run, facts.notes);

  std::string missing;
  std::vector<std::pair<const LayerPlan*, LayerFigures>> layers;
  for (const LayerPlan& layer : plan.layers) {
    const auto file = statistics_file(job.config.work, layer.layer);
    try {
      StatisticsOrigin origin;
      const ExpertStatistics statistics = load_statistics(file, &origin);
      if (origin.checkpoint != job.summary.origin.checkpoint || statistics.experts != layer.experts || statistics.layer != layer.layer) {
        throw UserError(file.filename().string() + " is of another checkpoint or layer");
      }
      const RoutingRule routing = layer_routing(job.checkpoint, job.model, layer.layer);
      layers.emplace_back(&layer, layer_figures(layer, plan.recipe, statistics, routing, compressed_router(job, layer)));
    } catch (const UserError&) {
      missing += (missing.empty() ? "" : ", ") + std::to_string(layer.layer);
      layers.emplace_back(&layer, layer_figures(layer, plan.recipe));
    }
  }
  if (!missing.empty()) {
    facts.notes.push_back("No valid statistics of layers " + missing + ": their distances and usage are not shown. `collect` makes them.");
  }
  Report report(std::move(facts), plan.recipe, std::move(run), std::move(evaluation));
  for (const auto& [layer, figures] : layers) report.add(*layer, figures);
  return report.html();
}

/// WORK/report.html, and beside the weights where the output is there. Returns where.
std::string write_page(const Job& job, const Plan& plan) {
  const std::string html = page(job, plan);
  make_folder(job.config.work);
  auto file = job.config.work / "report.html";
  write_file_atomically(file, html);
  if (!job.config.output.empty() && std::filesystem::is_regular_file(job.config.output / "config.json")) {
    file = job.config.output / report_name;
    write_file_atomically(file, html);
  }
  return file.string();
}

}  // namespace

void write_report(const Job& job, const std::filesystem::path& plan_file) {
  job.ranks.on_root([&] {
    try {
      job.log.info("report: " + write_page(job, load_plan(plan_file)));
    } catch (const std::exception& error) {  // the model is complete: nothing here may take it back
      job.log.warn(std::string("no report: ") + error.what());
    }
  });
}

void report(Job& job) {
  job.ranks.on_root([&] {
    const auto file = job.line.plans.empty() ? job.config.work / "plan.json" : job.line.plans.front();
    if (!std::filesystem::exists(file)) {
      throw UserError("no plan at " + file.string(),
                      "make one first: hcsmoe_dist run CONFIG, or hcsmoe_dist plan CONFIG; or name one: --plan FILE");
    }
    const Plan plan = load_plan(file);
    check_plan(plan, job.model, file.string());
    try {
      const std::string page = write_page(job, plan);
      job.log.info("report: " + page);
      job.result = ordered_json({{"format", "hcsmoe-report/1"}, {"report", page}, {"plan", file.string()}})
                       .dump(-1, ' ', false, ordered_json::error_handler_t::replace);
    } catch (const ordered_json::exception& error) {
      throw UserError(job.config.work.string() + ": run.json or evaluation.json is not as this version writes it: " + error.what(),
                      "remove the file, and make the report again");
    }
  });
}

}  // namespace hcsmoe
