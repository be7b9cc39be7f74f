// The experts' pass of a layer against products of the same shapes, in processor time of one thread, in turns: what other work on the
// machine takes does not count. tests/bench/statistics_pass.py --processor-time makes the model and runs it.
//
//     bench_statistics_pass MODEL SEQUENCES LENGTH float32|bfloat16 REPEATS
#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm_ops.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/remainder.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "hcsmoe/forward.h"
#include "processor_time.h"
#include "statistics/accumulator.h"

using namespace hcsmoe;

namespace {

/// GFLOP/s of x w^T over about half a second.
double product_rate(const at::Tensor& x, const at::Tensor& w) {
  at::Tensor out = at::empty({x.size(0), w.size(0)}, x.options());
  const auto product = [&] { at::_ops::mm_out::call(x, w.t(), out); };
  product();
  const double operations = 2.0 * static_cast<double>(x.numel()) * static_cast<double>(w.size(0)), start = processor_seconds();
  int64_t n = 0;
  while (processor_seconds() - start < 0.5) {
    product();
    ++n;
  }
  return static_cast<double>(n) * operations / (processor_seconds() - start) / 1e9;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: bench_statistics_pass MODEL SEQUENCES LENGTH float32|bfloat16 REPEATS\n");
    return 2;
  }
  const int64_t count = std::atoll(argv[2]), length = std::atoll(argv[3]);
  at::set_num_threads(1);
  const Checkpoint checkpoint = Checkpoint::open(argv[1]);
  const ModelDescription model = describe_model(checkpoint);
  Compute compute;
  compute.dtype = std::string(argv[4]) == "bfloat16" ? at::kBFloat16 : at::kFloat;
  const int64_t D = model.hidden_size, F = model.expert_intermediate;
  const at::Tensor x = at::randn({1024, D}).to(compute.dtype), h = at::randn({1024, F}).to(compute.dtype);
  const at::Tensor up = at::randn({F, D}).to(compute.dtype), down = at::randn({D, F}).to(compute.dtype);
  std::vector<double> rates, products, ratios;
  StatisticsAccumulator sums(model.experts, F);
  for (int repeat = 0; repeat < std::atoi(argv[5]); ++repeat) {
    std::vector<at::Tensor> sequences;
    for (int64_t s = 0; s < count; ++s) {
      sequences.push_back(at::arange(s * 7919, s * 7919 + length * 13, 13).remainder(model.vocabulary).to(at::kInt));
    }
    LayerSweep sweep(checkpoint, model, compute, std::move(sequences));
    while (sweep.next_layer() < model.layers) {
      sweep.begin_layer();
      sums.clear();
      const auto pass = static_cast<double>(2 * model.experts), routed = static_cast<double>(model.routing.top_k);
      const double a = product_rate(x, up), b = product_rate(h, down);
      const double product = (pass + routed) / (pass / a + routed / b);
      const double operations = sweep.figures().block_operations, start = processor_seconds();
      sweep.finish_layer(&sums);
      const double rate = (sweep.figures().block_operations - operations) / (processor_seconds() - start) / 1e9;
      if (repeat == 0 && sweep.next_layer() == 1) continue;  // buffers grow
      rates.push_back(rate);
      products.push_back(product);
      ratios.push_back(rate / product);
    }
  }
  std::printf(
      "D=%lld E=%lld F=%lld %s, %lld x %lld tokens, 1 thread, processor time: experts' pass %.1f GFLOP/s, products alone %.1f, ratio %.2f "
      "(%.2f to %.2f of %zu)\n",
      static_cast<long long>(D), static_cast<long long>(model.experts), static_cast<long long>(F), argv[4], static_cast<long long>(count),
      static_cast<long long>(length), median(rates), median(products), median(ratios), *std::min_element(ratios.begin(), ratios.end()),
      *std::max_element(ratios.begin(), ratios.end()), ratios.size());
}
