// weighted_mean: bytes read and written a second, on one core. Members are larger than the caches together.
#include <benchmark/benchmark.h>

#include <random>
#include <string>
#include <vector>

#include "hcsmoe/merging.h"

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

}  // namespace

BENCHMARK_MAIN();
