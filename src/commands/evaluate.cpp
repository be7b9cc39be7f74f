// evaluate, and the measurements that end `run` and `apply`.

#include <nlohmann/json.hpp>

#include "commands/job.h"
#include "hcsmoe/assembly.h"
#include "hcsmoe/error.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

struct OpenModel {
  Checkpoint checkpoint;
  ModelDescription model;
};

OpenModel open_model(const Ranks& ranks, const std::filesystem::path& folder) {
  std::optional<Checkpoint> checkpoint;
  std::optional<ModelDescription> model;
  const auto open = [&] {
    if (checkpoint) return;
    checkpoint.emplace(Checkpoint::open(folder));
    model.emplace(describe_model(*checkpoint));
  };
  ranks.on_root(open);
  ranks.on_all(open);
  return {std::move(*checkpoint), std::move(*model)};
}

MeasuredModel measured(const std::string& name, const Checkpoint& checkpoint, const ModelDescription& model) {
  return {name, checkpoint.folder().string(), "", model.experts, checkpoint.total_bytes(), {}};
}

/// What the plan would make of the job's model.
MeasuredModel measured(const Job& job, const std::filesystem::path& file, const Plan& plan) {
  const auto kept = static_cast<int64_t>(plan.layers.front().clusters.size());
  MeasuredModel entry{file.string(), job.checkpoint.folder().string(), file.string(), kept, 0, {}};
  for (const OutputFile& output : output_layout(job.checkpoint, job.model, kept, job.config.output_files.max_shard_bytes)) {
    for (const OutputTensor& tensor : output.tensors) entry.bytes += tensor.info.bytes();
  }
  if (plan.recipe.router != RouterMerge::alias) return entry;
  for (const LayerPlan& layer : plan.layers) {  // the rows that aliasing keeps
    const auto rows = layer.experts - static_cast<int64_t>(layer.dropped.size()) - kept;
    for (const std::string& name : moe_tensor_names(job.model, layer.layer, 0)) {
      entry.bytes += job.checkpoint.info(name).bytes() / static_cast<uint64_t>(layer.experts) * static_cast<uint64_t>(rows);
    }
  }
  return entry;
}

/// Measures the models, fills in their entries, prints the table and writes WORK/evaluation.json.
void measure(Job& job, const Compute& compute, const std::vector<EvaluatedModel>& models, std::vector<MeasuredModel> entries) {
  job.summary.dtype = dtype_name(compute);
  job.summary.threads = compute.threads;
  job.summary.stage("evaluation", [&] {
    auto measures = evaluate_models(job.config, models, compute, job.ranks, job.log);
    for (size_t m = 0; m < entries.size(); ++m) entries[m].measures = std::move(measures[m]);
  });
  job.summary.evaluation = std::move(entries);
  job.ranks.on_root([&] {
    if (job.config.work.empty()) return;  // evaluate without a work folder only prints
    write_file_atomically(job.config.work / "evaluation.json", evaluation_json(job.summary.evaluation, job.summary.dtype).dump(2) + "\n");
    if (job.config.evaluation.tasks.empty()) return;
    write_file_atomically(job.config.work / "evaluation_items.jsonl", evaluation_items(job.summary.evaluation));
  });
}

}  // namespace

void evaluate_before_and_after(Job& job, const Compute& compute) {
  if (!job.config.evaluation.any()) return;
  const OpenModel output = open_model(job.ranks, job.config.output);
  measure(job, compute, {{job.checkpoint, job.model}, {output.checkpoint, output.model}},
          {measured("original", job.checkpoint, job.model), measured("compressed", output.checkpoint, output.model)});
}

void evaluate(Job& job) {
  open_work(job);
  const Compute compute = choose_compute(job);
  describe(job, compute);
  std::vector<EvaluatedModel> models;
  std::vector<MeasuredModel> entries;
  std::optional<OpenModel> reference;
  if (!job.config.evaluation.reference.empty()) {
    reference.emplace(open_model(job.ranks, job.config.evaluation.reference));
    models.push_back({reference->checkpoint, reference->model});
    entries.push_back(measured("reference", reference->checkpoint, reference->model));
  }
  models.push_back({job.checkpoint, job.model});
  entries.push_back(measured("model", job.checkpoint, job.model));
  std::vector<Plan> plans;
  std::vector<std::vector<LayerUnits>> units;
  for (const auto& file : job.line.plans) {
    plans.push_back(read_plan(job, file));
    job.ranks.on_root([&] {
      if (!needs_tokens(plans.back().recipe)) return;
      throw UserError(file.string() + ": this plan fits the router or the experts to calibration tokens (compression.router: fitted, " +
                          "compression.reconstruction), which `evaluate --plan` does not do",
                      "make the checkpoint with `hcsmoe_dist apply`, and evaluate that");
    });
    units.push_back(align_plan(job, plans.back()));
  }
  for (size_t p = 0; p < plans.size(); ++p) {
    models.push_back({job.checkpoint, job.model, &plans[p], &units[p]});
    entries.push_back(measured(job, job.line.plans[p], plans[p]));
  }
  measure(job, compute, models, std::move(entries));
  job.ranks.on_root([&] {
    for (const std::string& line : evaluation_table(job.summary.evaluation)) job.log.info(line);
  });
}

}  // namespace hcsmoe
