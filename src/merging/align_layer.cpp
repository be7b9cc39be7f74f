// The pairs of a layer's clusters, dealt over ranks and threads.

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "forward/products.h"
#include "hcsmoe/error.h"
#include "merging/alignment.h"

namespace hcsmoe {
namespace {

/// A piece of work that does not depend on any other: for zipit a whole cluster, else a cluster and one member besides its reference.
struct Piece {
  size_t cluster = 0, member = 0;
};

std::vector<Piece> pieces_of(const LayerPlan& plan, Merge merge) {
  std::vector<Piece> pieces;
  for (size_t k = 0; k < plan.clusters.size(); ++k) {
    const std::vector<size_t> counting = counting_members(plan.clusters[k]);
    if (counting.size() < 2) continue;
    const size_t reference = reference_member(plan.clusters[k]);
    if (merge == Merge::zipit) pieces.push_back({k, reference});
    for (const size_t m : counting) {
      if (merge != Merge::zipit && m != reference) pieces.push_back({k, m});
    }
  }
  return pieces;
}

class Aligner {
 public:
  Aligner(const Checkpoint& checkpoint, const ModelDescription& model, const LayerPlan& plan, Merge merge, const at::Tensor& x)
      : checkpoint_(checkpoint), model_(model), plan_(plan), merge_(merge), x_(x) {}

  /// Unit numbers of the pieces first .. last, one after the other: F of a pair, members x F of a cluster.
  std::vector<int32_t> run(const std::vector<Piece>& pieces, size_t first, size_t last) {
    // The activations of a reference serve all its members: pieces are taken a batch at a time, and a batch's references are kept.
    const size_t batch = 2 * static_cast<size_t>(at::get_num_threads());
    std::vector<int32_t> all;
    for (size_t begin = first; begin < last; begin += batch) {
      const size_t end = std::min(last, begin + batch);
      if (merge_ != Merge::zipit) prepare_references(pieces, begin, end);
      std::vector<std::vector<int32_t>> found(end - begin);
      for_each_task(static_cast<int64_t>(end - begin),
                    [&](int64_t i, int) { found[static_cast<size_t>(i)] = match(pieces[begin + static_cast<size_t>(i)]); });
      for (const auto& units : found) all.insert(all.end(), units.begin(), units.end());
    }
    return all;
  }

 private:
  ExpertWeights weights(const Cluster& cluster, size_t member) const {
    const int64_t D = model_.hidden_size, F = model_.expert_intermediate, expert = cluster.members[member];
    const auto tensor = [&](ExpertPart part, std::vector<int64_t> shape) {
      return checkpoint_.tensor(expert_tensor_name(model_, plan_.layer, expert, part), shape);
    };
    return {tensor(ExpertPart::gate, {F, D}), tensor(ExpertPart::up, {F, D}), tensor(ExpertPart::down, {D, F})};
  }

  void prepare_references(const std::vector<Piece>& pieces, size_t begin, size_t end) {
    std::map<size_t, at::Tensor> kept;
    std::vector<size_t> missing;
    for (size_t i = begin; i < end; ++i) {
      const size_t k = pieces[i].cluster;
      if (kept.count(k) > 0) continue;
      const auto there = references_.find(k);
      if (there == references_.end()) missing.push_back(k);
      kept[k] = there == references_.end() ? at::Tensor() : there->second;
    }
    references_ = std::move(kept);
    std::vector<at::Tensor> made(missing.size());
    for_each_task(static_cast<int64_t>(missing.size()), [&](int64_t i, int) {
      const Cluster& cluster = plan_.clusters[missing[static_cast<size_t>(i)]];
      made[static_cast<size_t>(i)] = standardised(unit_activations(x_, weights(cluster, reference_member(cluster))));
    });
    for (size_t i = 0; i < missing.size(); ++i) references_[missing[i]] = made[i];
  }

  std::vector<int32_t> match(const Piece& piece) const {
    const Cluster& cluster = plan_.clusters[piece.cluster];
    try {
      if (merge_ == Merge::zipit) {
        std::vector<ExpertWeights> experts;
        for (size_t m = 0; m < cluster.members.size(); ++m) experts.push_back(weights(cluster, m));
        std::vector<int32_t> all;
        for (const auto& target : zipped_units(cluster, experts, x_)) all.insert(all.end(), target.begin(), target.end());
        return all;
      }
      const at::Tensor& reference = references_.at(piece.cluster);
      const ExpertWeights member = weights(cluster, piece.member);
      if (merge_ == Merge::fix_dominant) return most_correlated_units(reference, member, x_);
      return matched_units(weights(cluster, reference_member(cluster)), reference, member, x_);
    } catch (const UserError&) {
      throw;
    } catch (const Error& error) {
      throw Error("layer " + std::to_string(plan_.layer) + ", expert " + std::to_string(cluster.members[piece.member]) +
                  ": its units cannot be aligned: " + error.what());
    }
  }

  const Checkpoint& checkpoint_;
  const ModelDescription& model_;
  const LayerPlan& plan_;
  const Merge merge_;
  const at::Tensor x_;
  std::map<size_t, at::Tensor> references_;  // standardised activations, by cluster
};

LayerUnits layer_units(const LayerPlan& plan, Merge merge, const std::vector<Piece>& pieces, const std::string& bytes, size_t F) {
  std::vector<int32_t> identity(F);
  for (size_t i = 0; i < F; ++i) identity[i] = static_cast<int32_t>(i);
  size_t at = 0;
  const auto next = [&] {
    std::vector<int32_t> units(F);
    if (bytes.size() - at < F * sizeof(int32_t)) throw Error("the ranks aligned fewer units than the plan has");
    std::memcpy(units.data(), bytes.data() + at, F * sizeof(int32_t));
    at += F * sizeof(int32_t);
    return units;
  };
  LayerUnits units(plan.clusters.size());
  for (const Piece& piece : pieces) {
    UnitMap& map = units[piece.cluster];
    if (map.empty()) map.assign(plan.clusters[piece.cluster].members.size(), identity);
    if (merge == Merge::zipit) {
      for (auto& target : map) target = next();
    } else {
      map[piece.member] = next();
    }
  }
  if (at != bytes.size()) throw Error("the ranks aligned more units than the plan has");
  return units;
}

}  // namespace

double alignment_bytes(const ModelDescription& model, Merge merge, int64_t sample, int threads) {
  if (!aligns(merge)) return 0;
  const auto F = static_cast<double>(model.expert_intermediate), D = static_cast<double>(model.hidden_size),
             S = static_cast<double>(sample);
  const double units = std::min(F, static_cast<double>(unit_tile));
  const double converted = 6 * units * D + 2 * S * units + units * units;  // two tiles of three weights, their activations, their products
  if (merge == Merge::zipit) return 4 * threads * (4 * F * F + 8 * S * F + converted);
  return 4 * threads * (F * F + (3 + 2) * S * F + converted);  // of a pair, and a batch's references
}

LayerUnits align_layer(const Checkpoint& checkpoint, const ModelDescription& model, const LayerPlan& plan, Merge merge,
                       const at::Tensor& sample_input, const Ranks& ranks) {
  if (!aligns(merge)) return {};
  const std::vector<Piece> pieces = pieces_of(plan, merge);
  std::string bytes;
  ranks.on_all([&] {
    if (!sample_input.defined()) {
      throw UserError("layer " + std::to_string(plan.layer) + ": compression.merge is " + to_string(merge) +
                          ", which compares units on sampled tokens, and the statistics hold none",
                      "collect them with this merge in the configuration: hcsmoe_dist collect CONFIG");
    }
    if (sample_input.scalar_type() != at::kFloat || sample_input.dim() != 2 || sample_input.size(0) < 1 ||
        sample_input.size(1) != model.hidden_size) {
      throw UserError("layer " + std::to_string(plan.layer) + ": the sampled tokens of the statistics are not float32 [tokens, " +
                          std::to_string(model.hidden_size) + "]",
                      "collect the statistics again");
    }
    const size_t P = static_cast<size_t>(ranks.size()), r = static_cast<size_t>(ranks.rank());
    const std::vector<int32_t> mine =
        Aligner(checkpoint, model, plan, merge, sample_input.contiguous()).run(pieces, pieces.size() * r / P, pieces.size() * (r + 1) / P);
    bytes.assign(reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(int32_t));
  });
  const std::vector<std::string> parts = ranks.gather(bytes, 0);
  if (ranks.is_root()) {
    bytes.clear();
    for (const std::string& part : parts) bytes += part;
  }
  ranks.broadcast(bytes, 0);
  return layer_units(plan, merge, pieces, bytes, static_cast<size_t>(model.expert_intermediate));
}

}  // namespace hcsmoe
