// run, collect, plan and apply: each a short sequence of the steps in job.h.

#include <nlohmann/json.hpp>

#include "commands/background.h"
#include "commands/job.h"
#include "commands/job_record.h"
#include "commands/resumption.h"
#include "commands/shard_maker.h"
#include "hcsmoe/assembly.h"
#include "hcsmoe/error.h"
#include "hcsmoe/merging.h"
#include "hcsmoe/resume.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

std::filesystem::path plan_file(const Config& config) { return config.work / "plan.json"; }

void save_in_background(Background& background, const Job& job, const ExpertStatistics& statistics) {
  background.submit([&job, statistics] {
    const Span span(job.trace, Activity::writing, "statistics", statistics.layer);
    save_statistics(statistics_file(job.config.work, statistics.layer), statistics, job.summary.origin);
  });
}

}  // namespace

DeviceSizes device_sizes(const Job& job, const Compute& compute) {
  const CalibrationConfig& calibration = job.config.calibration;
  const int64_t P = job.ranks.size();
  DeviceSizes sizes = device_sizes(job.checkpoint, job.model, (calibration.sequences + P - 1) / P, calibration.length,
                                   static_cast<int64_t>(c10::elementSize(compute.dtype)));
  sizes.propagates = job.config.compression.propagate == Propagate::compressed;
  return sizes;
}

void describe(const Job& job, const Compute& compute) {
  job.log.info(job.model.family + " in " + job.config.model.string() + ": " + std::to_string(job.model.layers) + " layers, " +
               std::to_string(job.model.experts) + " experts in each of " + std::to_string(job.summary.moe_layers) + ", " +
               format_bytes(static_cast<double>(job.summary.model_bytes)));
  job.log.info(std::to_string(job.ranks.size()) + (job.ranks.size() == 1 ? " rank x " : " ranks x ") + std::to_string(compute.threads) +
               (compute.threads == 1 ? " thread, " : " threads, ") + dtype_name(compute));
  if (compute.threads > compute.cores) {
    job.log.warn(std::to_string(compute.threads) + " threads a rank, but this rank may run on " + std::to_string(compute.cores) +
                 (compute.cores == 1 ? " core" : " cores") + " only: start with mpirun --bind-to none, or set device.threads");
  }
}

Plan plan_from_statistics(Job& job) {
  Plan plan{job.config.compression, {}, {}};
  std::string text;
  job.summary.stage("plan", [&] {
    const Span span(job.trace, Activity::clustering, "plan");
    job.ranks.on_root([&] {
      for (const int64_t layer : job.model.moe_layers()) {
        const auto file = statistics_file(job.config.work, layer);
        if (!std::filesystem::exists(file)) {
          throw UserError("no statistics in " + file.parent_path().string() + " (" + file.filename().string() + " is missing)",
                          "collect them first: hcsmoe_dist collect CONFIG");
        }
        StatisticsOrigin origin;
        const ExpertStatistics statistics = load_statistics(file, &origin);
        if (origin.checkpoint != job.summary.origin.checkpoint) {
          throw UserError(file.string() + ": these statistics were collected from another checkpoint than " + job.config.model.string(),
                          "collect them again, or name the right model or work folder");
        }
        if (!plan.layers.empty() && !(origin == plan.origin)) {
          throw UserError(file.string() + ": collected on other calibration text or in another type than the layers before it",
                          "collect them again: hcsmoe_dist collect CONFIG");
        }
        if (statistics.layer != layer || statistics.experts != job.model.experts) {
          throw UserError(file.string() + ": holds layer " + std::to_string(statistics.layer) + " of " +
                          std::to_string(statistics.experts) + " experts, expected layer " + std::to_string(layer) + " of " +
                          std::to_string(job.model.experts));
        }
        plan.origin = origin;
        plan.layers.push_back(plan_layer(statistics, plan.recipe, layer_routing(job.checkpoint, job.model, statistics.layer)));
      }
      save_plan(plan_file(job.config), plan);
      text = plan_to_json(plan);
    });
    job.ranks.broadcast(text, 0);
    if (!job.ranks.is_root()) plan = plan_from_json(text, "the plan of rank 0");
  });
  job.summary.origin = plan.origin;
  return plan;
}

Plan read_plan(Job& job, const std::filesystem::path& file) {
  Plan plan;
  const auto read = [&] {
    if (!std::filesystem::exists(file)) {
      throw UserError("no plan at " + file.string(), "make one first: hcsmoe_dist plan CONFIG, or name one: --plan FILE");
    }
    plan = load_plan(file);
    check_plan(plan, job.model, file.string());
    if (!plan.origin.checkpoint.empty() && plan.origin.checkpoint != job.summary.origin.checkpoint) {
      throw UserError(file.string() + ": this plan was made from another checkpoint than " + job.config.model.string(),
                      "make it again, or name the model that it was made from");
    }
  };
  job.ranks.on_root(read);
  job.ranks.on_all(read);
  return plan;
}

void check_exportable(const Job& job, const Recipe& recipe) {
  job.ranks.on_root([&] {
    if (recipe.router != RouterMerge::alias) return;
    throw UserError(
        "compression.router: alias keeps a router row for every original expert; a checkpoint that stock software loads has one "
        "row an expert",
        "measure it with `hcsmoe_dist evaluate CONFIG --plan PLAN`, or choose another router: frequency, average, "
        "representative, fitted");
  });
}

namespace {

/// The plan that an earlier run left in WORK, if it is of the same recipe, text and checkpoint; on every rank.
std::optional<Plan> saved_plan(Job& job) {
  std::string text;
  job.ranks.on_root([&] {
    try {
      if (!std::filesystem::exists(plan_file(job.config))) return;
      const Plan plan = load_plan(plan_file(job.config));
      const bool same = plan.origin == job.summary.origin && recipe_to_json(plan.recipe) == recipe_to_json(job.config.compression);
      if (same) text = plan_to_json(plan);
    } catch (const UserError& error) {
      job.log.warn(std::string(error.what()) + "; planning anew");
    }
  });
  job.ranks.broadcast(text, 0);
  if (text.empty()) return std::nullopt;
  return plan_from_json(text, "the plan of rank 0");
}

/// Plans of a layer from rank 0 to every rank.
std::vector<LayerPlan> broadcast_plans(const Job& job, const std::vector<LayerPlan>& plans) {
  std::vector<std::string> texts;
  for (const LayerPlan& plan : plans) texts.push_back(layer_plan_to_json(plan));
  texts = texts_of_root(job.ranks, texts);
  std::vector<LayerPlan> all;
  job.ranks.on_all([&] {
    for (const std::string& text : texts) all.push_back(layer_plan_from_json(text, "the layer plan of rank 0"));
  });
  return all;
}

/// One pass over the calibration tokens, in which each layer is compressed: by `plan`, or as soon as its statistics are known.
void compress_on_tokens(Job& job, const Compute& compute, const at::Tensor& ids, const std::optional<StatisticSet>& wanted,
                        const std::optional<Plan>& plan) {
  Plan made{plan ? plan->recipe : job.config.compression, job.summary.origin, {}};
  const bool chooses = made.recipe.method == "auto";
  Background background(job.trace);
  Resumption resumption(job, ids, true, background);
  ShardMaker shards(job, compute, made.recipe, background);
  shards.begin_stream(ids, resumption);
  for (const LayerRecord& record : resumption.records()) {
    shards.pass_by(record);
    made.layers.push_back(record.plan);
  }
  job.ranks.on_all([&] { make_folder(job.config.work / "statistics"); });
  const auto compress = [&](const LayerPass& pass) {
    const int64_t index = pass.statistics.layer;
    const bool on_file = aligns(made.recipe.merge) && !wanted;
    const at::Tensor sample = on_file ? sampled_input(job, index, made.recipe.merge) : pass.statistics.sample_input;
    if (plan) return shards.make(plan->layers[static_cast<size_t>(pass.moe_layer)], sample, &pass);
    std::vector<LayerPlan> candidates;
    std::optional<Span> span(std::in_place, job.trace, Activity::clustering, "plan", index);
    job.ranks.on_root([&] {
      const ExpertStatistics statistics = wanted ? pass.statistics : load_statistics(statistics_file(job.config.work, index));
      if (wanted) save_in_background(background, job, statistics);
      for (const Recipe& recipe : chooses ? auto_candidates(made.recipe) : std::vector<Recipe>{made.recipe}) {
        candidates.push_back(plan_layer(statistics, recipe, layer_routing(job.checkpoint, job.model, statistics.layer)));
        if (chooses) candidates.back().method = candidate_name(recipe);
      }
    });
    candidates = broadcast_plans(job, candidates);
    span.reset();
    return chooses ? shards.make_best(candidates, sample, pass) : shards.make(candidates.front(), sample, &pass);
  };
  const auto after_layer = [&](const LayerPass& pass) {
    LayerRecord record = compress(pass);
    resumption.record(record);
    made.layers.push_back(std::move(record.plan));
  };
  sweep(job, compute, ids, wanted, resumption, after_layer, [&](int64_t layer) { return shards.compressed_after(layer); });
  job.summary.stage("merge", [&] { job.ranks.on_all([&] { background.wait(); }); });
  job.ranks.on_root([&] {
    if (!plan) save_plan(plan_file(job.config), made);
    drop_streams(job.config.work);
  });
}

/// What follows when the output folder is there. state: how far an earlier run came; running: this one has just written it.
void finish_job(Job& job, const Compute& compute, int64_t experts_kept, const std::filesystem::path& plan, JobState state) {
  const std::string output = job.config.output.string();
  if (state == JobState::finished) {
    job.log.info(output + " was made by an earlier run of this configuration, and is complete: nothing to do");
    return;
  }
  if (state == JobState::running) {
    mark_job(job, JobState::assembled);
    leave_if_asked(job, output + " is complete");
  } else {
    job.log.info(output + " was made by an earlier run; going on behind it");
    job.summary.experts_kept = experts_kept;
    job.summary.output = output;
    for (const OutputFile& file : output_layout(job.checkpoint, job.model, experts_kept, job.config.output_files.max_shard_bytes)) {
      job.summary.output_bytes += file.bytes;
    }
  }
  job.ranks.on_root([&] {
    job.summary.plan = plan_fingerprint(load_plan(plan));
    if (!job.summary.reconstruction.empty()) return;
    for (LayerRecord& record : recorded_layers(job)) {
      if (record.report) job.summary.reconstruction.push_back(std::move(*record.report));
    }
  });
  evaluate_before_and_after(job, compute);
  write_card(job, plan);
  finish_summary(job.summary, job.config.work, job.ranks, job.log);
  job.summarised = true;
  write_report(job, plan);
  mark_job(job, JobState::finished);
}

}  // namespace

void run(Job& job) {
  check_budget(job);
  check_exportable(job, job.config.compression);
  if (!output_is_made(job)) check_output(job, job.experts_kept());
  open_work(job);
  const Compute compute = choose_compute(job);
  describe(job, compute);
  job.summary.recipe = job.config.compression;
  const at::Tensor ids = prepare_calibration(job, compute);
  const JobState state = begin_job(job, asked_of(job, job.config.compression));
  if (state != JobState::running) return finish_job(job, compute, job.experts_kept(), plan_file(job.config), state);
  const auto wanted = statistics_to_collect(job, statistics_needed(job.config.compression));
  save_calibration(job, ids);
  std::optional<Plan> plan;
  if (!wanted) {
    job.log.info("the statistics in " + job.config.work.string() + " are valid and not collected again");
    plan = job.config.compression.method == "auto" ? saved_plan(job) : plan_from_statistics(job);
  }
  if (plan && (!needs_tokens(plan->recipe) || shards_are_valid(job, *plan))) {
    write_shards(job, compute, *plan);
  } else {
    compress_on_tokens(job, compute, ids, wanted, plan);
  }
  leave_if_asked(job, "all layers are compressed");
  write_output(job, job.experts_kept());
  finish_job(job, compute, job.experts_kept(), plan_file(job.config), JobState::running);
}

void collect(Job& job) {
  open_work(job);
  const Compute compute = choose_compute(job);
  describe(job, compute);
  const at::Tensor ids = prepare_calibration(job, compute);
  const StatisticSet needed = job.line.all ? StatisticSet::all() : statistics_needed(job.config.compression);
  nlohmann::ordered_json asked = asked_of(job, job.config.compression);
  asked["recipe"] = {{"statistics", needed.names()}};
  begin_job(job, asked);
  const auto wanted = statistics_to_collect(job, needed);
  save_calibration(job, ids);
  if (!wanted) {
    job.log.info("the statistics in " + job.config.work.string() + " are valid: nothing to do");
    mark_job(job, JobState::finished);
    return;
  }
  job.ranks.on_root([&] { make_folder(job.config.work / "statistics"); });
  Background background(job.trace);
  Resumption resumption(job, ids, false, background);
  const auto save = [&](const LayerPass& pass) {
    job.ranks.on_root([&] {
      save_in_background(background, job, pass.statistics);
      background.check();
    });
  };
  sweep(job, compute, ids, wanted, resumption, save, [](int64_t) { return at::Tensor(); });
  job.ranks.on_all([&] { background.wait(); });
  job.summary.read = files_read(job.checkpoint, job.ranks);
  mark_job(job, JobState::finished);
  finish_summary(job.summary, job.config.work, job.ranks, job.log);
  job.summarised = true;
  job.log.info("statistics: " + (job.config.work / "statistics").string());
}

void plan(Job& job) {
  check_budget(job);
  open_work(job);
  job.summary.recipe = job.config.compression;
  const Plan made = plan_from_statistics(job);
  job.ranks.on_root([&] {
    check_plan(made, job.model, plan_file(job.config).string());
    size_t largest = 0, single = 0, clusters = 0;
    nlohmann::ordered_json layers = nlohmann::ordered_json::array();
    for (const LayerPlan& layer : made.layers) {
      size_t most = 0, alone = 0;
      for (const Cluster& cluster : layer.clusters) {
        most = std::max(most, cluster.members.size());
        alone += cluster.members.size() == 1;
      }
      largest = std::max(largest, most);
      single += alone;
      clusters += layer.clusters.size();
      layers.push_back({{"layer", layer.layer},
                        {"experts", layer.experts},
                        {"clusters", layer.clusters.size()},
                        {"largest", most},
                        {"alone", alone},
                        {"dropped", layer.dropped}});
    }
    job.result = nlohmann::ordered_json({{"format", "hcsmoe-plan-summary/1"},
                                         {"plan", plan_file(job.config).string()},
                                         {"fingerprint", plan_fingerprint(made)},
                                         {"recipe", nlohmann::ordered_json::parse(recipe_to_json(made.recipe))},
                                         {"layers", layers}})
                     .dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
    job.log.info(std::to_string(made.layers.size()) + " layers of " + std::to_string(job.model.experts) + " experts in " +
                 std::to_string(made.layers.front().clusters.size()) + " clusters; largest " + std::to_string(largest) + ", alone " +
                 std::to_string(single) + " of " + std::to_string(clusters));
    job.log.info("plan: " + plan_file(job.config).string());
  });
}

void apply(Job& job) {
  const std::filesystem::path file = job.line.plans.empty() ? plan_file(job.config) : job.line.plans.front();
  const Plan plan = read_plan(job, file);
  check_exportable(job, plan.recipe);
  const auto kept = static_cast<int64_t>(plan.layers.front().clusters.size());
  if (!output_is_made(job)) check_output(job, kept);
  open_work(job);
  job.summary.recipe = plan.recipe;
  job.summary.origin.calibration = plan.origin.calibration;
  job.summary.origin.dtype = plan.origin.dtype;
  nlohmann::ordered_json asked = asked_of(job, plan.recipe);
  asked["plan"] = plan_fingerprint(plan);
  const JobState state = begin_job(job, asked);
  const Compute compute = choose_compute(job);
  if (state != JobState::running) return finish_job(job, compute, kept, file, state);
  if (!needs_tokens(plan.recipe) || shards_are_valid(job, plan)) {
    write_shards(job, compute, plan);
  } else {
    describe(job, compute);
    job.ranks.on_root([&] {
      if (!job.config.calibration.files.empty()) return;
      throw UserError(file.string() + ": this plan's recipe fits the router or the experts to calibration tokens, and " +
                          job.config.source.string() + " has no calibration.files",
                      "name the text that the plan was made on, with the same sequences, length and seed");
    });
    const at::Tensor ids = prepare_calibration(job, compute);
    job.ranks.on_root([&] {
      if (plan.origin.calibration.empty() || plan.origin.calibration == job.summary.origin.calibration) return;
      throw UserError("the plan was made on other calibration text than " + job.config.source.string() +
                          " names, and its recipe fits the experts to calibration tokens",
                      "name the same calibration text, or make the plan again: hcsmoe_dist run CONFIG");
    });
    save_calibration(job, ids);
    compress_on_tokens(job, compute, ids, std::nullopt, plan);
  }
  leave_if_asked(job, "all layers are compressed");
  write_output(job, kept);
  finish_job(job, compute, kept, file, JobState::running);
}

}  // namespace hcsmoe
