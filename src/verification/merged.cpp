#include "verification/merged.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>

#include "hcsmoe/error.h"
#include "hcsmoe/log.h"
#include "hcsmoe/merging.h"
#include "hcsmoe/shards.h"
#include "plan/draws.h"
#include "support/text.h"
#include "verification/gathering.h"

namespace hcsmoe {
namespace {

constexpr int64_t experts_of_a_large_model = 4;  // a layer
constexpr uint64_t small_model = uint64_t{1} << 30;
constexpr int64_t router = -1;

/// The router of a layer (expert -1), or one of its merged experts.
struct Unit {
  size_t layer = 0;  // of the plan
  int64_t expert = router;
};

enum class Check { again, shard, finite };

bool made_of_the_plan_alone(const Recipe& recipe, const LayerPlan& layer, int64_t expert) {
  if (expert == router) return !needs_tokens(recipe);
  if (recipe.reconstruction == Reconstruction::full) return false;
  return !aligns(recipe.merge) || layer.clusters[static_cast<size_t>(expert)].members.size() == 1;
}

std::vector<std::string> names_of(const ModelDescription& model, int64_t layer, int64_t expert) {
  if (expert == router) return moe_tensor_names(model, layer, 0);
  std::vector<std::string> names;
  for (const ExpertPart part : expert_parts) names.push_back(expert_tensor_name(model, layer, expert, part));
  return names;
}

/// `count` of the numbers, those with the smallest draws, ascending.
std::vector<int64_t> drawn(std::vector<int64_t> numbers, int64_t count, uint64_t seed, int64_t layer, int64_t experts) {
  const std::vector<uint64_t> draws = expert_draws(seed, layer, experts);
  const auto before = [&](int64_t a, int64_t b) { return draws[static_cast<size_t>(a)] < draws[static_cast<size_t>(b)]; };
  std::sort(numbers.begin(), numbers.end(), before);
  numbers.resize(std::min(numbers.size(), static_cast<size_t>(count)));
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

template <class Word>
bool finite_words(std::span<const std::byte> bytes, Word exponent) {
  for (size_t i = 0; i + sizeof(Word) <= bytes.size(); i += sizeof(Word)) {
    Word word;
    std::memcpy(&word, bytes.data() + i, sizeof word);
    if ((word & exponent) == exponent) return false;
  }
  return true;
}

bool all_finite(const DType& dtype, std::span<const std::byte> bytes) {
  if (dtype.name == "BF16") return finite_words<uint16_t>(bytes, 0x7f80);
  if (dtype.name == "F16") return finite_words<uint16_t>(bytes, 0x7c00);
  if (dtype.name == "F32") return finite_words<uint32_t>(bytes, 0x7f800000);
  if (dtype.name == "F64") return finite_words<uint64_t>(bytes, 0x7ff0000000000000);
  return true;
}

/// The layer's shard, if it was made of this plan; UserErrors are the caller's.
std::unique_ptr<ShardReader> shard_of(const OutputToVerify& given, const LayerPlan& layer) {
  const auto file = given.work.empty() ? std::filesystem::path() : shard_file(given.work, layer.layer);
  if (file.empty() || !std::filesystem::exists(file)) return nullptr;
  auto shard = std::make_unique<ShardReader>(file);
  const bool of_plan = shard->layer() == layer.layer && shard->origin().checkpoint == given.plan.origin.checkpoint &&
                       shard->origin().layer_plan.starts_with(plan_fingerprint({{}, {}, {layer}}));
  return of_plan ? std::move(shard) : nullptr;
}

class MergedTensors {
 public:
  MergedTensors(const OutputToVerify& given, const Checkpoint& output, const std::set<std::string>& sound, std::vector<Placed>& deviations)
      : given_(given), output_(output), sound_(sound), deviations_(deviations) {}

  Check check(int64_t place, const Unit& unit) {
    place_ = place;
    const LayerPlan& layer = given_.plan.layers[unit.layer];
    if (made_of_the_plan_alone(given_.plan.recipe, layer, unit.expert)) {
      again(layer, unit.expert);
      return Check::again;
    }
    const std::vector<std::string> names = names_of(given_.model, layer.layer, unit.expert);
    try {
      if (shard_layer_ != unit.layer) {
        shard_layer_ = unit.layer;
        shard_ = shard_of(given_, layer);
      }
      if (shard_) {
        for (const std::string& name : names) compare_with_shard(name);
        return Check::shard;
      }
    } catch (const UserError& error) {
      shard_.reset();
      deviates(error.what());
    }
    for (const std::string& name : names) {
      if (!sound_.contains(name)) continue;
      if (!all_finite(output_.info(name).dtype, output_.bytes(name)))
        deviates("tensor " + name_text(name) + " has values that are not finite");
      output_.done_with(name);
    }
    return Check::finite;
  }

 private:
  void deviates(const std::string& what) { deviations_.emplace_back(place_, what); }

  void again(const LayerPlan& layer, int64_t expert) {
    const TensorSink compare = [&](const std::string& name, const DType&, const std::vector<int64_t>&, std::span<const std::byte> bytes) {
      if (!sound_.contains(name)) return;
      const auto found = output_.bytes(name);
      const auto differ = std::mismatch(found.begin(), found.end(), bytes.begin(), bytes.end());
      if (differ.first != found.end()) {
        deviates("tensor " + name_text(name) + " is not what the plan makes of the original: it differs from byte " +
                 std::to_string(differ.first - found.begin()) + " on");
      }
      output_.done_with(name);
    };
    if (expert == router) {
      merge_router(given_.original, given_.model, layer, compare);
    } else {
      merge_expert(given_.original, given_.model, layer, expert, compare);
    }
  }

  void compare_with_shard(const std::string& name) {
    if (!sound_.contains(name)) return;
    const auto found = output_.bytes(name);
    if (shard_->info(name).bytes() != found.size()) return deviates("tensor " + name_text(name) + " has another size in its shard");
    size_t done = 0;
    bool same = true;
    shard_->read(name, [&](std::span<const std::byte> piece) {
      same = same && std::memcmp(piece.data(), found.data() + done, piece.size()) == 0;
      done += piece.size();
    });
    if (!same) deviates("tensor " + name_text(name) + " is not that of its shard");
    output_.done_with(name);
  }

  const OutputToVerify& given_;
  const Checkpoint& output_;
  const std::set<std::string>& sound_;
  std::vector<Placed>& deviations_;
  int64_t place_ = 0;
  std::optional<size_t> shard_layer_;
  std::unique_ptr<ShardReader> shard_;
};

/// What is checked of the merged tensors, layer by layer: everything that cannot be made again, and a draw of what can.
std::vector<Unit> units_of(const OutputToVerify& given, const Checkpoint& output) {
  const int64_t K = given.experts_kept();
  const int64_t sample = given.sample > 0 ? given.sample : output.total_bytes() <= small_model ? K : experts_of_a_large_model;
  std::vector<Unit> units;
  for (size_t i = 0; i < given.plan.layers.size(); ++i) {
    const LayerPlan& layer = given.plan.layers[i];
    std::vector<int64_t> again;
    units.push_back({i, router});
    for (int64_t k = 0; k < K; ++k) {
      if (made_of_the_plan_alone(given.plan.recipe, layer, k)) {
        again.push_back(k);
      } else {
        units.push_back({i, k});
      }
    }
    for (const int64_t k : drawn(again, sample, given.seed, layer.layer, K)) units.push_back({i, k});
  }
  return units;
}

std::string counted(int64_t count, const std::string& what) { return std::to_string(count) + " " + what + (count == 1 ? "" : "s"); }

}  // namespace

void verify_merged(const Ranks& ranks, const OutputToVerify& given, const Checkpoint& output, const std::set<std::string>& sound,
                   Trace* trace, Findings& findings) {
  const std::vector<Unit> units = units_of(given, output);
  std::vector<Placed> deviations;
  std::vector<int64_t> counts(6, 0);  // routers and experts: made again, compared with shards, only looked at
  ranks.on_all([&] {
    MergedTensors merged(given, output, sound, deviations);
    for (size_t i = 0; i < units.size(); ++i) {
      if (ranks.owner_of(static_cast<int64_t>(i)) != ranks.rank()) continue;
      const Span span(trace, Activity::computing, "merged tensors", given.plan.layers[units[i].layer].layer);
      const Check check = merged.check(static_cast<int64_t>(i), units[i]);
      counts[2 * static_cast<size_t>(check) + (units[i].expert == router ? 0 : 1)] += 1;
    }
  });
  ranks.all_reduce_sum(counts);
  const int64_t experts = given.experts_kept() * static_cast<int64_t>(given.plan.layers.size());
  const auto how_many = [&](size_t at) {
    return counted(counts[at], "router") + " and " + std::to_string(counts[at + 1]) + " of " + counted(experts, "expert");
  };
  const size_t wrong = findings.deviations.size();
  for (std::string& deviation : gather_placed(ranks, deviations)) findings.deviations.push_back(std::move(deviation));
  const auto result = [&](const std::string& good) {
    const size_t found = findings.deviations.size() - wrong;
    return found == 0 ? good : std::to_string(found) + " deviations";
  };
  if (counts[0] + counts[1] > 0) {
    findings.checked.push_back("merged tensors: " + how_many(0) +
                               " made again from the original and the plan: " + result("equal bit by bit"));
  }
  if (counts[2] + counts[3] > 0) {
    findings.checked.push_back("merged tensors: " + how_many(2) + " compared with the shards in " + given.work.string() + ": " +
                               result("equal bit by bit"));
  }
  if (counts[4] + counts[5] > 0) {
    findings.checked.push_back("merged tensors: " + how_many(4) + " looked at: " + result("all values finite"));
    findings.unchecked.push_back("values of " + how_many(4) +
                                 ": they were fitted to, or aligned on, calibration tokens, which the plan does not hold, and there are no "
                                 "shards of this plan in a work folder");
  }
  const int64_t drawn_only = experts - counts[1] - counts[3] - counts[5];
  if (drawn_only > 0)
    findings.unchecked.push_back("values of " + counted(drawn_only, "expert") + " that were not drawn (--sample N draws more)");
}

}  // namespace hcsmoe
