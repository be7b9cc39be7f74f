// Clustering of one layer: E=256 experts of D=7168 channels (DeepSeek-V3's shape), on one core. plan_from_file: all that `plan` does with a
// layer, from its statistics file to its plan.
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <vector>

#include "hcsmoe/clustering.h"
#include "hcsmoe/plan.h"

namespace {

constexpr int64_t E = 256, D = 7168;

const std::vector<double>& features() {
  static const std::vector<double> values = [] {
    std::mt19937_64 random(1);
    std::normal_distribution<double> normal;
    std::vector<double> result(E * D);
    for (double& x : result) x = normal(random);
    return result;
  }();
  return values;
}

void distances(benchmark::State& state) {
  const auto metric = static_cast<hcsmoe::Metric>(state.range(0));
  const auto& values = features();
  for (auto _ : state) benchmark::DoNotOptimize(hcsmoe::pairwise_distances(values, E, D, metric));
}
BENCHMARK(distances)->ArgName("metric")->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

void linkage(benchmark::State& state) {
  static const auto condensed = hcsmoe::pairwise_distances(features(), E, D, hcsmoe::Metric::euclidean);
  for (auto _ : state) benchmark::DoNotOptimize(hcsmoe::linkage_tree(condensed, E, static_cast<hcsmoe::Linkage>(state.range(0))));
}
BENCHMARK(linkage)->ArgName("linkage")->DenseRange(0, 3)->Unit(benchmark::kMillisecond);

void layer(benchmark::State& state) {
  const auto& values = features();
  for (auto _ : state) {
    const auto condensed = hcsmoe::pairwise_distances(values, E, D, hcsmoe::Metric::euclidean);
    const auto tree = hcsmoe::linkage_tree(condensed, E, static_cast<hcsmoe::Linkage>(state.range(0)));
    benchmark::DoNotOptimize(hcsmoe::cut_tree(tree, E, E / 2));
  }
}
BENCHMARK(layer)->ArgName("linkage")->DenseRange(0, 3)->Unit(benchmark::kMillisecond);

void plan_from_file(benchmark::State& state) {
  const auto file = std::filesystem::temp_directory_path() / ("bench_clustering." + std::to_string(::getpid()) + ".h5");
  const auto doubles = at::TensorOptions().dtype(at::kDouble);
  hcsmoe::ExpertStatistics statistics;
  statistics.experts = E;
  statistics.tokens = 65536;
  statistics.routed_count = at::ones({E}, at::TensorOptions().dtype(at::kLong));
  statistics.output_sum = at::randn({E, D}, doubles);
  statistics.router_logit_gram = at::randn({E, E}, doubles);
  for (at::Tensor* values : {&statistics.routed_weight_sum, &statistics.router_probability_sum, &statistics.routed_output_norm_sum,
                             &statistics.weighted_output_norm_sum, &statistics.router_logit_sum}) {
    *values = at::ones({E}, doubles);
  }
  hcsmoe::save_statistics(file, statistics, {});
  hcsmoe::Recipe recipe;
  recipe.experts.count = E / 2;
  for (auto _ : state) benchmark::DoNotOptimize(hcsmoe::plan_layer(hcsmoe::load_statistics(file), recipe));
  std::filesystem::remove(file);
}
BENCHMARK(plan_from_file)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
