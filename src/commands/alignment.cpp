// The tokens that units are compared on, from WORK/statistics to every rank.

#include <ATen/ops/empty.h>

#include <cstring>

#include "commands/job.h"
#include "hcsmoe/error.h"

namespace hcsmoe {

at::Tensor sampled_input(const Job& job, int64_t layer, Merge merge) {
  at::Tensor sample;
  std::string bytes;
  job.ranks.on_root([&] {
    const auto file = statistics_file(job.config.work, layer);
    const std::string hint = "collect them first: hcsmoe_dist collect CONFIG --set compression.merge=" + to_string(merge);
    const std::string need = "; compression.merge " + to_string(merge) + " compares units on the tokens sampled there";
    if (!std::filesystem::exists(file)) throw UserError("no statistics in " + file.string() + need, hint);
    StatisticsOrigin origin;
    const ExpertStatistics statistics = load_statistics(file, &origin);
    if (origin.checkpoint != job.summary.origin.checkpoint) {
      throw UserError(file.string() + ": these statistics were collected from another checkpoint than " + job.config.model.string(),
                      "collect them again, or name the right model or work folder");
    }
    if (!statistics.sample_input.defined()) throw UserError(file.string() + " holds no sample_input" + need, hint);
    sample = statistics.sample_input.contiguous();
    if (sample.scalar_type() != at::kFloat || sample.dim() != 2 || sample.size(1) != job.model.hidden_size) {
      throw UserError(file.string() + ": sample_input is not float32 [tokens, " + std::to_string(job.model.hidden_size) + "]", hint);
    }
    bytes.assign(static_cast<const char*>(sample.const_data_ptr()), sample.nbytes());
  });
  job.ranks.broadcast(bytes, 0);
  if (!job.ranks.is_root()) {
    const auto row_bytes = static_cast<int64_t>(sizeof(float)) * job.model.hidden_size;
    sample = at::empty({static_cast<int64_t>(bytes.size()) / row_bytes, job.model.hidden_size}, at::TensorOptions().dtype(at::kFloat));
    std::memcpy(sample.mutable_data_ptr(), bytes.data(), bytes.size());
  }
  return sample;
}

std::vector<LayerUnits> align_plan(const Job& job, const Plan& plan) {
  std::vector<LayerUnits> units;
  if (!aligns(plan.recipe.merge)) return units;
  for (const LayerPlan& layer : plan.layers) {
    const at::Tensor sample = sampled_input(job, layer.layer, plan.recipe.merge);
    units.push_back(align_layer(job.checkpoint, job.model, layer, plan.recipe.merge, sample, job.ranks));
  }
  return units;
}

}  // namespace hcsmoe
