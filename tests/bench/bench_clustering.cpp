// Clustering of one layer: E=256 experts of D=7168 channels (DeepSeek-V3's shape), on one core.
#include <benchmark/benchmark.h>

#include <random>
#include <vector>

#include "hcsmoe/clustering.h"

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

}  // namespace

BENCHMARK_MAIN();
