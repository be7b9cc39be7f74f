// weighted_mean: bytes read and written a second, on one core; members are larger than the caches together. Alignment of a pair of experts:
// seconds on one core, the whole and the assignment in it. The experts share half of their units, in another order and with noise.
#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <benchmark/benchmark.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "forward/products.h"
#include "hcsmoe/merging.h"
#include "merging/alignment.h"
#include "merging/assignment.h"

namespace {

constexpr size_t elements = 2048 * 1408;  // a projection of Qwen1.5-MoE-A2.7B

void weighted_mean(benchmark::State& state, const std::string& type) {
  const hcsmoe::DType dtype = hcsmoe::dtype_from_name(type);
  const auto count = static_cast<size_t>(state.range(0));
  std::mt19937 random(1);
  std::vector<std::vector<std::byte>> tensors(count);
  std::vector<std::span<const std::byte>> members;
  for (auto& tensor : tensors) {
    tensor.resize(elements * static_cast<size_t>(dtype.bytes));
    for (auto& byte : tensor) byte = static_cast<std::byte>(random() & 0x3f);  // no inf, no nan
    members.emplace_back(tensor);
  }
  const std::vector<double> weights(count, 1.0 / static_cast<double>(count));
  std::vector<std::byte> out(tensors[0].size());
  for (auto _ : state) {
    hcsmoe::weighted_mean(dtype, members, weights, out);
    benchmark::DoNotOptimize(out.data());
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * (count + 1) * out.size()));
}
BENCHMARK_CAPTURE(weighted_mean, BF16, "BF16")->ArgName("members")->Arg(2)->Arg(4)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(weighted_mean, F16, "F16")->ArgName("members")->Arg(2)->Arg(4)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(weighted_mean, F32, "F32")->ArgName("members")->Arg(2)->Arg(4)->Unit(benchmark::kMillisecond);

at::Tensor noise(std::mt19937& random, int64_t rows, int64_t columns, float scale) {
  std::normal_distribution<float> normal(0, scale);
  at::Tensor tensor = at::empty({rows, columns}, at::TensorOptions().dtype(at::kFloat));
  for (int64_t i = 0; i < tensor.numel(); ++i) hcsmoe::data<float>(tensor)[i] = normal(random);
  return tensor;
}

/// Two experts, and the tokens that they are compared on.
struct Pair {
  hcsmoe::ExpertWeights first, second;
  at::Tensor x;

  Pair(int64_t D, int64_t F, int64_t S) {
    std::mt19937 random(2);
    const float scale = 1 / std::sqrt(static_cast<float>(D));
    const auto related = [&](const at::Tensor& weight, int64_t axis) {  // the second half of the units first, and noise for the others
      const at::Tensor kept = weight.narrow(axis, F / 2, F - F / 2);
      const at::Tensor fresh = noise(random, weight.size(0), weight.size(1), scale);
      return at::cat({kept, fresh.narrow(axis, 0, F / 2)}, axis)
          .add(noise(random, weight.size(0), weight.size(1), scale / 2))
          .to(at::kBFloat16);
    };
    const at::Tensor gate = noise(random, F, D, scale), up = noise(random, F, D, scale), down = noise(random, D, F, scale);
    first = {gate.to(at::kBFloat16), up.to(at::kBFloat16), down.to(at::kBFloat16)};
    second = {related(gate, 0), related(up, 0), related(down, 1)};
    x = noise(random, S, D, 1);
  }
};

void align_pair(benchmark::State& state) {
  at::set_num_threads(1);
  const Pair pair(state.range(0), state.range(1), 2048);
  const at::Tensor reference = hcsmoe::standardised(hcsmoe::unit_activations(pair.x, pair.first));
  for (auto _ : state) benchmark::DoNotOptimize(hcsmoe::matched_units(pair.first, reference, pair.second, pair.x));
}

void assign_pair(benchmark::State& state) {
  at::set_num_threads(1);
  const Pair pair(state.range(0), state.range(1), 2048);
  at::Tensor scores = hcsmoe::unit_correlations(hcsmoe::standardised(hcsmoe::unit_activations(pair.x, pair.first)),
                                                hcsmoe::standardised(hcsmoe::unit_activations(pair.x, pair.second)));
  hcsmoe::add_weight_cosines(pair.first, pair.second, scores);
  const std::span<const float> table(hcsmoe::const_data<float>(scores), static_cast<size_t>(scores.numel()));
  for (auto _ : state) benchmark::DoNotOptimize(hcsmoe::best_assignment(table, state.range(1)));
}

void zip_pair(benchmark::State& state) {
  at::set_num_threads(1);
  const Pair pair(state.range(0), state.range(1), 2048);
  const hcsmoe::Cluster cluster{{0, 1}, {0.5, 0.5}, {0.5, 0.5}, 0};
  for (auto _ : state) benchmark::DoNotOptimize(hcsmoe::zipped_units(cluster, {pair.first, pair.second}, pair.x));
}

BENCHMARK(align_pair)->ArgNames({"D", "F"})->Args({512, 352})->Args({2048, 1408})->Unit(benchmark::kSecond);
BENCHMARK(assign_pair)->ArgNames({"D", "F"})->Args({512, 352})->Args({2048, 1408})->Unit(benchmark::kSecond);
BENCHMARK(zip_pair)->ArgNames({"D", "F"})->Args({512, 352})->Args({2048, 1408})->Unit(benchmark::kSecond);

}  // namespace

BENCHMARK_MAIN();
