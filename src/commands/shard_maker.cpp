#include "commands/shard_maker.h"

#include <cstdio>

#include "hcsmoe/error.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

using Tensors = std::vector<std::pair<std::string, at::Tensor>>;

/// A compressed block's tensors under their final names.
Tensors named(const ModelDescription& model, int64_t layer, const SparseBlock& block) {
  Tensors tensors{{tensor_name(model.names.router, layer), block.router}};
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
  ShardWriter writer(shard_file(job.config.work, layer), layer, origin);
  tensors([&](const std::string& name, const DType& dtype, const std::vector<int64_t>& shape, std::span<const std::byte> bytes) {
    writer.write(name, dtype, shape, bytes);
  });
  writer.finish();
  for (const std::string& name : moe_tensor_names(job.model, layer, job.model.experts)) job.checkpoint.done_with(name);
}

void write_block(const Job& job, int64_t layer, const ShardOrigin& origin, const SparseBlock& block) {
  // Tensor names of the original's first expert have its types: a compressed block keeps them.
  const DType expert_type = job.checkpoint.info(expert_tensor_name(job.model, layer, 0, ExpertPart::gate)).dtype;
  const DType router_type = job.checkpoint.info(tensor_name(job.model.names.router, layer)).dtype;
  write_shard(job, layer, origin, [&](const TensorSink& sink) {
    for (const auto& [name, tensor] : named(job.model, layer, block)) {
      const at::Tensor values = tensor.contiguous();
      const bool router = name == tensor_name(job.model.names.router, layer);
      sink(name, router ? router_type : expert_type, values.sizes().vec(),
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

void ShardMaker::make(const LayerPlan& layer, const at::Tensor& sample_input, const LayerPass* pass) {
  const std::string before = earlier_layers_;
  const bool valid = is_valid(layer, sample_input);
  // A stream through the compressed layers needs every block.
  if (valid && !(needs_tokens(recipe_) && recipe_.propagate == Propagate::compressed)) return;
  earlier_layers_ = before;
  const ShardOrigin origin = origin_of(layer, sample_input);
  const LayerUnits units = align_layer(job_.checkpoint, job_.model, layer, recipe_.merge, sample_input, job_.ranks);
  const bool mine = job_.ranks.owner_of(layer.layer) == job_.ranks.rank();
  if (needs_tokens(recipe_)) {
    if (!pass) throw Error("layer " + std::to_string(layer.layer) + " is to be fitted to tokens, and there are none");
    const SparseBlock block = reconstructed(layer, units, *pass);
    job_.ranks.on_all([&] {
      if (mine && !valid) background_.submit([&job = job_, index = layer.layer, origin, block] { write_block(job, index, origin, block); });
      background_.check();
    });
    return;
  }
  job_.ranks.on_all([&] {
    if (mine) {
      background_.submit([&job = job_, layer, units, origin] {
        write_shard(job, layer.layer, origin, [&](const TensorSink& sink) { merge_layer(job.checkpoint, job.model, layer, sink, units); });
      });
    }
    background_.check();
  });
}

SparseBlock ShardMaker::reconstructed(const LayerPlan& layer, const LayerUnits& units, const LayerPass& pass) {
  const bool propagates = recipe_.propagate == Propagate::compressed;
  if (propagates && !compressed_) {
    std::vector<at::Tensor> sequences;
    for (int64_t s = 0; s < pass.share.number; ++s) sequences.push_back(pass.ids[pass.share.first + s]);
    compressed_.emplace(job_.checkpoint, job_.model, compute_, std::move(sequences));
  }
  at::Tensor input = pass.layers.block_input(), target = pass.layers.routed_output();
  if (propagates) {
    while (compressed_->next_layer() < layer.layer) compressed_->run_layer();  // dense layers
    compressed_->begin_layer();
    // What the routed experts must add for the two residual streams to meet after this layer.
    input = compressed_->block_input();
    target = pass.layers.hidden().sub(compressed_->hidden());
  }
  SparseBlock block;
  job_.ranks.on_all([&] { block = merged_block(job_.checkpoint, job_.model, layer, units); });
  const at::Tensor router = job_.checkpoint.tensor(tensor_name(job_.model.names.router, layer.layer));  // [E, D]
  ReconstructionReport report;
  block = reconstruct({input, target, pass.share.groups}, {layer, job_.model.routing, router, recipe_}, std::move(block), compute_,
                      job_.ranks, report);
  if (propagates) compressed_->finish_layer(nullptr, &block);
  job_.log.info("layer " + std::to_string(layer.layer) + ": output error on held-out tokens " + percent(report.start_error) + " -> " +
                percent(report.error));
  job_.summary.reconstruction.push_back(std::move(report));
  return block;
}

bool shards_are_valid(Job& job, const Plan& plan) {
  Background background;
  ShardMaker shards(job, {}, plan.recipe, background);
  const Merge merge = plan.recipe.merge;
  bool valid = true;
  for (const LayerPlan& layer : plan.layers) {
    valid = valid && shards.is_valid(layer, aligns(merge) ? sampled_input(job, layer.layer, merge) : at::Tensor());
  }
  return valid;
}

void write_shards(Job& job, const Plan& plan) {
  const Merge merge = plan.recipe.merge;
  job.summary.stage("merge", [&] {
    Progress progress(job.log, "merge", static_cast<int64_t>(plan.layers.size()), "layers");
    Background background;  // a layer is merged while all ranks align the next
    ShardMaker shards(job, {}, plan.recipe, background);
    for (const LayerPlan& layer : plan.layers) {
      shards.make(layer, aligns(merge) ? sampled_input(job, layer.layer, merge) : at::Tensor(), nullptr);
      progress.step();
    }
    job.ranks.on_all([&] { background.wait(); });
  });
}

}  // namespace hcsmoe
