// O-prune on a layer of 60 experts, 10,000 sets of 30, top-4: the issue asks for less than 10 s on 2 cores; and on Mixtral's 8 experts.
#include <ATen/ops/randn.h>
#include <ATen/ops/triu_indices.h>
#include <ATen/ops/zeros.h>
#include <benchmark/benchmark.h>

#include "hcsmoe/plan.h"

namespace {

constexpr int64_t tokens = 2048, hidden = 128;

hcsmoe::ExpertStatistics layer_of(int64_t E) {
  hcsmoe::ExpertStatistics statistics;
  statistics.experts = E;
  statistics.tokens = tokens;
  statistics.sample_input = at::zeros({tokens, 1}, at::kFloat);
  statistics.sample_logits = at::randn({tokens, E}, at::kFloat);
  const at::Tensor outputs = at::randn({tokens, E, hidden}, at::kFloat), upper = at::triu_indices(E, E);
  statistics.token_output_gram = outputs.bmm(outputs.transpose(1, 2)).index({at::Tensor(), upper[0], upper[1]}).contiguous();
  return statistics;
}

void o_prune(benchmark::State& state) {
  const hcsmoe::ExpertStatistics statistics = layer_of(state.range(0));
  hcsmoe::Recipe recipe = hcsmoe::default_recipe("o-prune");
  recipe.experts.count = state.range(0) / 2;
  const hcsmoe::RoutingRule routing{.top_k = state.range(1), .renormalise = state.range(2) != 0};
  for (auto _ : state) benchmark::DoNotOptimize(hcsmoe::plan_layer(statistics, recipe, routing));
}
BENCHMARK(o_prune)
    ->ArgNames({"experts", "top_k", "renormalise"})
    ->Args({60, 4, 0})
    ->Args({60, 4, 1})
    ->Args({8, 2, 1})
    ->Unit(benchmark::kSecond);

}  // namespace

BENCHMARK_MAIN();
