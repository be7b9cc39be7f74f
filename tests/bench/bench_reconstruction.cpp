// What the reconstruction of a layer takes, in processor time of one thread, against the statistics pass over the same tokens: what other
// work on the machine takes does not count. tests/bench/reconstruction.py --processor-time makes the model and runs it.
//
//     bench_reconstruction MODEL SEQUENCES LENGTH float32|bfloat16 frequency|fitted ROUNDS...
#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/remainder.h>
#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "hcsmoe/forward.h"
#include "hcsmoe/merging.h"
#include "hcsmoe/reconstruction.h"
#include "processor_time.h"
#include "statistics/accumulator.h"

using namespace hcsmoe;

namespace {

/// Experts k and E / 2 + k, which the random checkpoint makes alike, in one cluster; the last of an odd number stays.
LayerPlan plan_of_pairs(int64_t experts) {
  LayerPlan plan;
  plan.experts = experts;
  for (int64_t k = 0; k < experts / 2; ++k) plan.clusters.push_back({{k, experts / 2 + k}, {0.5, 0.5}, {0.5, 0.5}, k});
  if (experts % 2 != 0) plan.clusters.push_back({{experts - 1}, {1}, {1}, experts - 1});
  return plan;
}

/// The first layer of the model.
void run(int argc, char** argv, const Ranks& ranks) {
  const int64_t count = std::atoll(argv[2]), length = std::atoll(argv[3]);
  const Checkpoint checkpoint = Checkpoint::open(argv[1]);
  const ModelDescription model = describe_model(checkpoint);
  Compute compute;
  compute.dtype = std::string(argv[4]) == "bfloat16" ? at::kBFloat16 : at::kFloat;
  Recipe recipe;
  recipe.router = std::string(argv[5]) == "fitted" ? RouterMerge::fitted : RouterMerge::frequency;
  recipe.reconstruction = Reconstruction::full;

  const SequenceShare share = deal_sequences(count, length, ranks);
  std::vector<at::Tensor> sequences;
  for (int64_t s = 0; s < count; ++s) {
    sequences.push_back(at::arange(s * 7919, s * 7919 + length * 13, 13).remainder(model.vocabulary).to(at::kInt));
  }
  StatisticsAccumulator sums(model.experts, model.expert_intermediate);
  {
    LayerSweep warm(checkpoint, model, compute, {sequences.front()});
    warm.run_layer(&sums);
  }
  sums.clear();
  LayerSweep sweep(checkpoint, model, compute, std::move(sequences));
  const double before = processor_seconds();
  sweep.begin_layer();
  const double start = processor_seconds();
  const double operations = sweep.figures().block_operations;
  sweep.finish_layer(&sums);
  const double statistics = processor_seconds() - start;
  const double pass = statistics + start - before;
  std::printf("%s: statistics pass %.1f s, of which routed experts %.1f s (%.1f GFLOP/s)\n", argv[4], pass, statistics,
              (sweep.figures().block_operations - operations) / statistics / 1e9);

  const LayerPlan plan = plan_of_pairs(model.experts);
  const BlockTokens tokens{sweep.block_input(), sweep.routed_output(), share.groups};
  const at::Tensor router = checkpoint.tensor(tensor_name(model.names.router, 0));
  for (int round = 6; round < argc; ++round) {
    recipe.rounds = std::atoll(argv[round]);
    ReconstructionReport report;
    const double begin = processor_seconds();
    reconstruct(tokens, {plan, layer_routing(checkpoint, model, 0), router, recipe}, merged_block(checkpoint, model, plan), compute, ranks,
                report);
    const double taken = processor_seconds() - begin;
    std::printf("rounds %lld: reconstruction %.1f s, %.3f of the statistics pass (%.3f of its routed experts alone); error %.4f -> %.4f\n",
                static_cast<long long>(recipe.rounds), taken, taken / pass, taken / statistics, report.start_error, report.error);
    double wall = 0;
    for (const ReconstructionStep& step : report.steps) wall += step.seconds;
    for (const ReconstructionStep& step : report.steps) {  // shares of the time that passed
      std::printf("  %-40s %6.3f  error %.4f%s\n", step.what.c_str(), step.seconds / wall * taken / pass, step.error,
                  step.kept ? "" : " (undone)");
    }
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7) {
    std::fprintf(stderr, "usage: bench_reconstruction MODEL SEQUENCES LENGTH float32|bfloat16 frequency|fitted ROUNDS...\n");
    return 2;
  }
  at::set_num_threads(1);
  MPI_Init(&argc, &argv);
  int status = 0;
  try {
    const Ranks ranks(MPI_COMM_WORLD);
    run(argc, argv, ranks);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_reconstruction: %s\n", error.what());
    status = 1;
  }
  MPI_Finalize();
  return status;
}
