#include "commands/shard_maker.h"

#include <algorithm>
#include <cstdio>

#include "hcsmoe/error.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

constexpr size_t reconstructed_candidates = 2;  // of method auto

using Tensors = std::vector<std::pair<std::string, at::Tensor>>;

/// A compressed block's tensors under their final names.
Tensors named(const ModelDescription& model, int64_t layer, const SparseBlock& block) {
  Tensors tensors{{tensor_name(model.names.router, layer), block.router}};
  if (block.correction_bias.defined()) tensors.emplace_back(tensor_name(model.names.correction_bias, layer), block.correction_bias);
  for (size_t k = 0; k < block.experts.size(); ++k) {
    const ExpertWeights& expert = block.experts[k];
    const auto name = [&](ExpertPart part) { return expert_tensor_name(model, layer, static_cast<int64_t>(k), part); };
    tensors.emplace_back(name(ExpertPart::gate), expert.gate);
    tensors.emplace_back(name(ExpertPart::up), expert.up);
    tensors.emplace_back(name(ExpertPart::down), expert.down);
  }
  return tensors;
}

void write_shard(const Job& job, int64_t layer, const ShardOrigin& origin, const std::function<void(const TensorSink&)>& tensors) {
  const Span span(job.trace, Activity::writing, "shard", layer);
  ShardWriter writer(shard_file(job.config.work, layer), layer, origin);
  tensors([&](const std::string& name, const DType& dtype, const std::vector<int64_t>& shape, std::span<const std::byte> bytes) {
    const Span writing(job.trace, Activity::writing, "HDF5", layer);
    writer.write(name, dtype, shape, bytes);
  });
  const std::vector<std::string> names = moe_tensor_names(job.model, layer, job.model.experts);
  job.checkpoint.require_unchanged(names);
  {
    const Span syncing(job.trace, Activity::writing, "to the disk", layer);
    writer.finish();
  }
  for (const std::string& name : names) job.checkpoint.done_with(name);
}

void write_block(const Job& job, int64_t layer, const ShardOrigin& origin, const SparseBlock& block) {
  write_shard(job, layer, origin, [&](const TensorSink& sink) {
    for (const auto& [name, tensor] : named(job.model, layer, block)) {
      const at::Tensor values = tensor.contiguous();
      // The original has a tensor of this name, and a compressed block keeps its type.
      sink(name, job.checkpoint.info(name).dtype, values.sizes().vec(),
           {static_cast<const std::byte*>(values.const_data_ptr()), values.nbytes()});
    }
  });
}

std::string percent(double share) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f %%", 100 * share);
  return text;
}

}  // namespace

ShardMaker::ShardMaker(Job& job, const Compute& compute, const Recipe& recipe, Background& background)
    : job_(job), compute_(compute), recipe_(recipe), background_(background) {
  job.ranks.on_all([&] { make_folder(job.config.work / "shards"); });
}

void ShardMaker::begin_stream(const at::Tensor& ids, Resumption& resumption) {
  if (!needs_tokens(recipe_) || recipe_.propagate != Propagate::compressed) return;
  const SweepStart start = resumption.take_compressed();
  compressed_.emplace(job_.checkpoint, job_.model, compute_, resumption.sequences(ids),
                      layer_weights(job_.checkpoint, job_.model, compute_, job_.ranks, start.layer), start);
}

ShardOrigin ShardMaker::origin_of(const LayerPlan& layer, const at::Tensor& sample_input) {
  std::string made_from = plan_fingerprint({{}, {}, {layer}});
  if (aligns(recipe_.merge) && sample_input.defined()) {
    const at::Tensor sample = sample_input.contiguous();
    Hasher hasher;
    hasher.add({static_cast<const std::byte*>(sample.const_data_ptr()), sample.nbytes()});
    made_from += " " + to_string(recipe_.merge) + " " + hasher.hex();
  }
  if (needs_tokens(recipe_)) {
    made_from += " " + to_string(recipe_.router) + " " + to_string(recipe_.reconstruction) + " " + std::to_string(recipe_.rounds) + " " +
                 job_.summary.origin.calibration + " " + job_.summary.origin.dtype;
    if (recipe_.propagate == Propagate::compressed) {
      made_from += earlier_layers_;
      Hasher hasher;
      hasher.add(made_from);
      earlier_layers_ = " " + hasher.hex();
    }
  }
  return {job_.summary.origin.checkpoint, made_from};
}

bool ShardMaker::is_valid(const LayerPlan& layer, const at::Tensor& sample_input) {
  const ShardOrigin origin = origin_of(layer, sample_input);
  int64_t missing = 0;
  if (job_.ranks.is_root()) {
    const auto file = shard_file(job_.config.work, layer.layer);
    try {
      missing = std::filesystem::exists(file) && ShardReader(file).origin() == origin ? 0 : 1;
    } catch (const UserError&) {
      missing = 1;  // half of something: written anew
    }
  }
  return job_.ranks.all_reduce_max(missing) == 0;
}

void ShardMaker::pass_by(const LayerRecord& record) {
  const int64_t layer = record.plan.layer;
  if (!is_valid(record.plan, aligns(recipe_.merge) ? sampled_input(job_, layer, recipe_.merge) : at::Tensor())) {
    job_.ranks.on_root([&] {
      throw UserError(shard_file(job_.config.work, layer).string() + ": missing or damaged, and later layers were made after it",
                      "start over: --fresh");
    });
  }
  if (record.report) job_.summary.reconstruction.push_back(*record.report);
}

LayerRecord ShardMaker::make(const LayerPlan& layer, const at::Tensor& sample_input, const LayerPass* pass) {
  const std::string before = earlier_layers_;
  const bool valid = is_valid(layer, sample_input);
  // A stream through the compressed layers needs every block.
  const bool streams = pass && needs_tokens(recipe_) && recipe_.propagate == Propagate::compressed;
  if (valid && !streams) return {layer, std::nullopt};
  earlier_layers_ = before;
  const ShardOrigin origin = origin_of(layer, sample_input);
  if (needs_tokens(recipe_)) {
    if (!pass) throw Error("layer " + std::to_string(layer.layer) + " is to be fitted to tokens, and there are none");
    const BlockTokens tokens = tokens_of(layer.layer, *pass);
    ReconstructionReport report;
    SparseBlock block = reconstructed(layer, sample_input, tokens, recipe_.rounds, report);
    return finish(layer, origin, !valid, std::move(block), std::move(report));
  }
  const LayerUnits units = aligned(layer, sample_input);
  const bool mine = job_.ranks.owner_of(layer.layer) == job_.ranks.rank();
  job_.ranks.on_all([&] {
    if (mine) {
      background_.submit([&job = job_, device = compute_.device, layer, units, origin] {
        write_shard(job, layer.layer, origin, [&](const TensorSink& sink) {
          const Span span(job.trace, Activity::computing, "merge", layer.layer);
          merge_layer(job.checkpoint, job.model, layer, sink, units, device);
        });
      });
    }
    background_.check();
  });
  return {layer, std::nullopt};
}

LayerRecord ShardMaker::make_best(const std::vector<LayerPlan>& candidates, const at::Tensor& sample_input, const LayerPass& pass) {
  const int64_t index = candidates.front().layer;
  const BlockTokens tokens = tokens_of(index, pass);
  std::vector<CandidateScore> scores;
  std::vector<size_t> ranked;
  std::vector<std::string> seen;
  for (size_t c = 0; c < candidates.size(); ++c) {
    const std::string clusters = plan_fingerprint({{}, {}, {candidates[c]}});
    if (std::find(seen.begin(), seen.end(), clusters) != seen.end()) continue;  // another candidate's plan again
    seen.push_back(clusters);
    ReconstructionReport report;
    reconstructed(candidates[c], sample_input, tokens, 0, report);
    ranked.push_back(scores.size());
    scores.push_back({candidates[c].method, report.start_error, report.error, std::nullopt});
  }
  std::stable_sort(ranked.begin(), ranked.end(), [&](size_t a, size_t b) { return scores[a].first_error < scores[b].first_error; });
  LayerPlan best;
  SparseBlock best_block;
  ReconstructionReport best_report;
  for (size_t i = 0; i < std::min(ranked.size(), reconstructed_candidates); ++i) {
    CandidateScore& score = scores[ranked[i]];
    const auto candidate = std::find_if(candidates.begin(), candidates.end(), [&](const LayerPlan& c) { return c.method == score.method; });
    ReconstructionReport report;
    SparseBlock block = reconstructed(*candidate, sample_input, tokens, recipe_.rounds, report);
    score.error = report.error;
    if (i > 0 && !(report.error < best_report.error)) continue;
    best = *candidate;
    best_block = std::move(block);
    best_report = std::move(report);
  }
  best.scores = std::move(scores);
  return finish(best, origin_of(best, sample_input), true, std::move(best_block), std::move(best_report));
}

BlockTokens ShardMaker::tokens_of(int64_t layer, const LayerPass& pass) {
  if (recipe_.propagate == Propagate::original) {
    const Span span(job_.trace, Activity::copying, "tokens of the block", layer);
    return {pass.layers.block_input().cpu(), pass.layers.routed_output().cpu(), pass.share.groups};
  }
  while (compressed_->next_layer() < layer) compressed_->run_layer();  // dense layers
  compressed_->begin_layer();
  const Span span(job_.trace, Activity::copying, "tokens of the block", layer);
  // What the routed experts must add for the two residual streams to meet after this layer.
  return {compressed_->block_input().cpu(), pass.layers.hidden().sub(compressed_->hidden()).cpu(), pass.share.groups};
}

at::Tensor ShardMaker::compressed_after(int64_t layer) {
  if (!compressed_) return {};
  while (compressed_->next_layer() <= layer) compressed_->run_layer();  // dense layers
  return compressed_->hidden();
}

LayerUnits ShardMaker::aligned(const LayerPlan& layer, const at::Tensor& sample_input) const {
  const Span span(job_.trace, Activity::computing, "align", layer.layer);
  return align_layer(job_.checkpoint, job_.model, layer, recipe_.merge, sample_input, job_.ranks);
}

SparseBlock ShardMaker::reconstructed(const LayerPlan& layer, const at::Tensor& sample_input, const BlockTokens& tokens, int64_t rounds,
                                      ReconstructionReport& report) {
  const LayerUnits units = aligned(layer, sample_input);
  SparseBlock block;
  job_.ranks.on_all([&] {
    const Span span(job_.trace, Activity::computing, "merge", layer.layer);
    block = merged_block(job_.checkpoint, job_.model, layer, units, compute_.device);
  });
  const at::Tensor router = job_.checkpoint.tensor(tensor_name(job_.model.names.router, layer.layer));  // [E, D]
  Recipe recipe = recipe_;
  recipe.rounds = rounds;
  const RoutingRule rule = layer_routing(job_.checkpoint, job_.model, layer.layer);
  const Span span(job_.trace, Activity::reconstructing, "reconstruction", layer.layer);
  return reconstruct(tokens, {layer, rule, router, recipe}, std::move(block), compute_, job_.ranks, report);
}

LayerRecord ShardMaker::finish(const LayerPlan& layer, const ShardOrigin& origin, bool write, SparseBlock block,
                               ReconstructionReport report) {
  if (recipe_.propagate == Propagate::compressed) compressed_->finish_layer(nullptr, &block);
  job_.log.info("layer " + std::to_string(layer.layer) + ": output error on held-out tokens " + percent(report.start_error) + " -> " +
                percent(report.error) + (layer.method.empty() ? "" : " (" + layer.method + ")"));
  job_.summary.reconstruction.push_back(report);
  const bool mine = job_.ranks.owner_of(layer.layer) == job_.ranks.rank();
  job_.ranks.on_all([&] {
    if (mine && write) background_.submit([&job = job_, index = layer.layer, origin, block] { write_block(job, index, origin, block); });
    background_.check();
  });
  return {layer, std::move(report)};
}

bool shards_are_valid(Job& job, const Plan& plan) {
  Background background(job.trace);
  ShardMaker shards(job, {}, plan.recipe, background);
  const Merge merge = plan.recipe.merge;
  bool valid = true;
  for (const LayerPlan& layer : plan.layers) {
    valid = valid && shards.is_valid(layer, aligns(merge) ? sampled_input(job, layer.layer, merge) : at::Tensor());
  }
  return valid;
}

void write_shards(Job& job, const Compute& compute, const Plan& plan) {
  const Merge merge = plan.recipe.merge;
  job.summary.stage("merge", [&] {
    Progress progress(job.log, "merge", static_cast<int64_t>(plan.layers.size()), "layers");
    Background background(job.trace);  // a layer is merged while all ranks align the next
    ShardMaker shards(job, compute, plan.recipe, background);
    for (const LayerPlan& layer : plan.layers) {
      shards.make(layer, aligns(merge) ? sampled_input(job, layer.layer, merge) : at::Tensor(), nullptr);
      progress.step();
    }
    job.ranks.on_all([&] { background.wait(); });
  });
}

}  // namespace hcsmoe
