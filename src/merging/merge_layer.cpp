#include <string>

#include "hcsmoe/error.h"
#include "hcsmoe/merging.h"
#include "merging/merger.h"
#include "support/text.h"

namespace hcsmoe {
namespace {

/// A tensor with a row for each expert, [E, ...] to [K, ...]: the router's rows, and its correction biases.
void merge_rows_of_experts(const std::string& name, const Checkpoint& checkpoint, const LayerPlan& plan, const std::vector<int64_t>& row,
                           const TensorSink& sink) {
  const TensorInfo& info = checkpoint.info(name);
  std::vector<int64_t> shape{plan.experts};
  shape.insert(shape.end(), row.begin(), row.end());
  if (info.shape != shape) {
    throw UserError("tensor " + name + " is " + shape_text(info.shape) + "; the plan of layer " + std::to_string(plan.layer) +
                        " expects one row for each of " + std::to_string(plan.experts) + " experts",
                    "the plan is of another model");
  }
  const std::span<const std::byte> rows = checkpoint.bytes(name);
  const size_t row_bytes = rows.size() / static_cast<size_t>(plan.experts);
  std::vector<std::byte> merged(plan.clusters.size() * row_bytes);
  for (size_t k = 0; k < plan.clusters.size(); k++) {
    const Cluster& cluster = plan.clusters[k];
    std::vector<std::span<const std::byte>> members;
    for (const int64_t expert : cluster.members) members.push_back(rows.subspan(static_cast<size_t>(expert) * row_bytes, row_bytes));
    weighted_mean(info.dtype, members, cluster.router_weights, std::span(merged).subspan(k * row_bytes, row_bytes));
  }
  checkpoint.done_with(name);
  shape[0] = static_cast<int64_t>(plan.clusters.size());
  sink(name, info.dtype, shape, merged);
}

/// The three tensors of cluster k's expert.
void merge_expert(const Checkpoint& checkpoint, const ModelDescription& model, const LayerPlan& plan, size_t k, const Merger& merger,
                  const UnitMap& units, const TensorSink& sink) {
  const Cluster& cluster = plan.clusters[k];
  const UnitParts parts = units.empty() ? UnitParts{} : unit_parts(cluster, units, model.expert_intermediate);
  std::vector<std::byte> merged;
  for (const ExpertPart part : expert_parts) {
    std::vector<std::string> names;
    std::vector<std::span<const std::byte>> members;
    for (const int64_t expert : cluster.members) {
      names.push_back(expert_tensor_name(model, plan.layer, expert, part));
      members.push_back(checkpoint.bytes(names.back()));
    }
    const TensorInfo& first = checkpoint.info(names[0]);
    for (const std::string& name : names) {
      const TensorInfo& info = checkpoint.info(name);
      if (info.dtype != first.dtype || info.shape != first.shape) {
        throw UserError("tensor " + name + " is " + info.dtype.name + " " + shape_text(info.shape) + ", " + first.name + " is " +
                            first.dtype.name + " " + shape_text(first.shape) + ": they cannot be merged",
                        "the experts of a cluster must have one type and shape");
      }
    }
    merged.resize(members[0].size());
    if (units.empty()) {
      merger.mean(first.dtype, members, cluster.weights, merged);
    } else {
      const int64_t F = model.expert_intermediate, D = model.hidden_size;
      checkpoint.tensor(names[0], part == ExpertPart::down ? std::vector<int64_t>{D, F} : std::vector<int64_t>{F, D});  // as described
      if (part == ExpertPart::down) {
        merger.columns(first.dtype, members, parts, merged);
      } else {
        merger.rows(first.dtype, members, parts, merged);
      }
    }
    for (const std::string& name : names) checkpoint.done_with(name);
    sink(expert_tensor_name(model, plan.layer, static_cast<int64_t>(k), part), first.dtype, first.shape, merged);
  }
}

}  // namespace

void merge_router(const Checkpoint& checkpoint, const ModelDescription& model, const LayerPlan& plan, const TensorSink& sink) {
  merge_rows_of_experts(tensor_name(model.names.router, plan.layer), checkpoint, plan, {model.hidden_size}, sink);
  if (const std::string& bias = model.names.correction_bias; !bias.empty()) {
    merge_rows_of_experts(tensor_name(bias, plan.layer), checkpoint, plan, {}, sink);
  }
}

void merge_expert(const Checkpoint& checkpoint, const ModelDescription& model, const LayerPlan& plan, int64_t k, const TensorSink& sink) {
  merge_expert(checkpoint, model, plan, static_cast<size_t>(k), *merger_on(at::kCPU), {}, sink);
}

void merge_layer(const Checkpoint& checkpoint, const ModelDescription& model, const LayerPlan& plan, const TensorSink& sink,
                 const LayerUnits& units, at::Device device) {
  const std::unique_ptr<Merger> merger = merger_on(device);
  if (!units.empty() && units.size() != plan.clusters.size()) throw Error("there are units of other clusters than the plan's");
  merge_router(checkpoint, model, plan, sink);
  for (size_t k = 0; k < plan.clusters.size(); k++) {
    merge_expert(checkpoint, model, plan, k, *merger, units.empty() ? UnitMap{} : units[k], sink);
  }
}

}  // namespace hcsmoe
