#include <algorithm>
#include <numeric>
#include <string>

#include "hcsmoe/error.h"
#include "plan/draws.h"
#include "plan/expert_values.h"
#include "plan/keep.h"
#include "plan/methods/methods.h"
#include "plan/subset_errors.h"

namespace hcsmoe {
namespace {

constexpr int64_t all_sets_up_to = 20'000;  // number of sets; above it, sampled ones

/// C(n, k), or `most` + 1 where it is more than that.
int64_t combinations(int64_t n, int64_t k, int64_t most) {
  int64_t result = 1;
  for (int64_t i = 1; i <= std::min(k, n - k); i++) {
    result = result * (n - i + 1) / i;
    if (result > most) return most + 1;
  }
  return result;
}

class SetMaker {
 public:
  SetMaker(const Division& division, int64_t clusters) : division_(division) { sets.size = clusters; }

  /// chosen: experts of division.rest.
  void add(const std::vector<int64_t>& chosen) {
    std::vector<int64_t> kept;
    std::merge(division_.kept.begin(), division_.kept.end(), chosen.begin(), chosen.end(), std::back_inserter(kept));
    for (const int64_t e : kept) sets.experts.push_back(static_cast<int32_t>(e));
  }

  /// In lexicographic order.
  void add_all() {
    const auto R = static_cast<int64_t>(division_.rest.size()), K = division_.clusters;
    std::vector<int64_t> place(static_cast<size_t>(K));
    std::iota(place.begin(), place.end(), 0);
    for (bool more = true; more;) {
      std::vector<int64_t> chosen;
      for (const int64_t p : place) chosen.push_back(division_.rest[p]);
      add(chosen);
      more = false;
      for (int64_t i = K; i-- > 0 && !more;) {
        if (place[i] == R - K + i) continue;
        std::iota(place.begin() + i, place.end(), place[i] + 1);
        more = true;
      }
    }
  }

  /// The experts of the highest draws, with draws of its own for every set.
  void add_drawn(const PlanInput& input) {
    const uint64_t start = split_mix(split_mix(input.recipe.seed) ^ static_cast<uint64_t>(input.statistics.layer));
    for (int64_t i = 0; i < input.recipe.candidates; i++) {
      const std::vector<uint64_t> draws = numbered_draws(start ^ static_cast<uint64_t>(i), input.statistics.experts);
      add(highest(std::span<const uint64_t>(draws), division_.rest, division_.clusters));
    }
  }

  ExpertSets sets;

 private:
  const Division& division_;
};

}  // namespace

LayerPlan plan_o_prune(const PlanInput& input) {
  const ExpertStatistics& statistics = input.statistics;
  const int64_t E = statistics.experts;
  const std::string layer = "layer " + std::to_string(statistics.layer);
  if (input.clusters < input.routing.top_k) {
    throw UserError(layer + ": " + std::to_string(input.clusters) + " experts are to be kept, but a token goes to the best " +
                        std::to_string(input.routing.top_k) + " (the model's top-k)",
                    "keep at least " + std::to_string(input.routing.top_k) + " experts a layer (compression.experts)");
  }
  const auto logits = sample_values(statistics, statistics.sample_logits, "sample_logits", E);
  const auto gram = sample_values(statistics, statistics.token_output_gram, "token_output_gram", E * (E + 1) / 2);
  const Division division = divide(input, false);
  SetMaker maker(division, input.clusters);
  if (combinations(static_cast<int64_t>(division.rest.size()), division.clusters, all_sets_up_to) <= all_sets_up_to) {
    maker.add_all();
  } else {
    maker.add_drawn(input);
  }
  const std::vector<double> errors = subset_errors(logits, gram, E, input.routing, maker.sets);
  const auto best = maker.sets[std::min_element(errors.begin(), errors.end()) - errors.begin()];  // the first of equals
  return plan_of_kept(statistics, {best.begin(), best.end()});
}

}  // namespace hcsmoe
