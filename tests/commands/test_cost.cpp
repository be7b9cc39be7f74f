// The model of the cost: by hand, against the tables of the documentation, and the table of published models itself.

#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "hcsmoe/cost.h"
#include "hcsmoe/error.h"
#include "hcsmoe/forward.h"
#include "statistics/accumulator.h"

using namespace hcsmoe;

namespace {

double product(std::initializer_list<double> factors) {
  double p = 1;
  for (const double f : factors) p *= f;
  return p;
}

/// Of grouped-query attention with biases left out, and a vocabulary V in and out.
ModelSizes published(const std::string& name, int64_t layers, int64_t moe, int64_t D, double attention, double pair, int64_t dense,
                     int64_t shared, int64_t E, int64_t k, int64_t F, int64_t V, double bytes) {
  ModelSizes m{name, layers, moe, D, attention, pair, dense, shared, E, k, F};
  m.expert_bytes = product({3.0, double(D), double(F), bytes});
  m.router_row_bytes = double(D) * bytes;
  const double blocks =
      double(moe) * (3.0 * double(D) * double(E * F + shared) + double(E * D)) + double(layers - moe) * 3.0 * double(D * dense);
  m.total_bytes = bytes * (double(layers) * attention + blocks + 2.0 * double(V * D));
  return m;
}

const ModelSizes qwen = published("Qwen1.5-MoE", 24, 24, 2048, 4.0 * 2048 * 2048, 2 * 2048, 0, 5632, 60, 4, 1408, 151936, 2);
const ModelSizes mixtral = published("Mixtral-8x7B", 32, 32, 4096, 2.0 * 4096 * (4096 + 1024), 2 * 4096, 0, 0, 8, 2, 14336, 32000, 2);
const ModelSizes mixtral_large =
    published("Mixtral-8x22B", 56, 56, 6144, 2.0 * 6144 * (6144 + 1024), 2 * 6144, 0, 0, 8, 2, 16384, 32768, 2);
// Latent attention: queries by rank 1536, keys and values by rank 512 and 64 rotated channels; 128 heads of 192 and 128 channels.
const ModelSizes deepseek =
    published("DeepSeek-V3", 61, 58, 7168, 7168.0 * 1536 + 1536.0 * 128 * 192 + 7168.0 * 576 + 512.0 * 128 * 256 + 128.0 * 128 * 7168,
              128.0 * (192 + 128), 18432, 2048, 256, 8, 2048, 129280, 1);
const std::vector<ModelSizes> models = {qwen, mixtral, mixtral_large, deepseek};

Workload workload(const ModelSizes& m, Reconstruction reconstruction, int64_t rounds = 1) {
  Workload work;
  work.kept = m.experts / 2;
  work.statistics = {Statistic::output_sum};
  work.recipe.reconstruction = reconstruction;
  work.recipe.rounds = rounds;
  return work;
}

}  // namespace

TEST(Cost, OfATinyModelByHand) {
  ModelSizes m{"tiny", 3, 2, 8, 100, 16, 20, 5, 6, 2, 4};
  m.expert_bytes = 3 * 8 * 4 * 2;  // 192
  m.router_row_bytes = 16;
  m.total_bytes = 10000;
  Workload work;
  work.sequences = 2;
  work.length = 10;
  work.kept = 4;
  work.statistics = {Statistic::output_sum};
  const Cost cost = cost_of(m, work);
  // A layer's attention: 20 x 100 + 2 x 55 pairs x 16 = 3760. Dense: 20 x 3 x 8 x 20 = 9600. Shared: 20 x 3 x 8 x 5 = 2400.
  // Router: 20 x 8 x 6 = 960. Experts: 20 x 8 x 4 x (2 x 6 + 2) = 8960.
  EXPECT_EQ(cost.sweep_operations, 2.0 * (3 * 3760 + 9600 + 2 * (2400 + 960 + 8960)));
  EXPECT_EQ(cost.sample_operations, 0);
  EXPECT_EQ(cost.reconstruction_operations, 0);
  EXPECT_EQ(cost.solving_operations, 0);
  EXPECT_EQ(cost.factorisations, 0);
  EXPECT_EQ(cost.read_bytes, 10000);
  EXPECT_EQ(cost.reduced_bytes, 2 * 8 * (1 + 6 + 2 * (30 + 36 + 24)));
  EXPECT_EQ(cost.shard_bytes, 2 * 4 * (192 + 16));
  EXPECT_EQ(cost.output_bytes, 10000 - 2 * 2 * (192 + 16));

  work.statistics = {};  // routed tokens alone: three products of 2 experts a token
  const Cost routed = cost_of(m, work);
  EXPECT_EQ(routed.sweep_operations, 2.0 * (3 * 3760 + 9600 + 2 * (2400 + 960 + 20 * 8 * 4 * 6)));
  EXPECT_EQ(routed.reduced_bytes, 2 * 8 * (1 + 6 + 2 * (30 + 36)));

  work.statistics = {Statistic::token_output_gram};
  work.sample = 5;  // outputs of 6 experts on 5 tokens, and half of their products with each other
  EXPECT_EQ(cost_of(m, work).sample_operations, 2.0 * 2 * 5 * 6 * (3 * 8 * 4 + 8 * 6 / 2));
}

TEST(Cost, SecondsByHand) {
  const ModelSizes m{"two layers", 2, 2};
  Cost cost;
  cost.sweep_operations = 72e12;
  cost.reconstruction_operations = 8e12;
  cost.solving_operations = 8e12;
  cost.factorisations = 1e12;
  cost.read_bytes = 40e9;
  cost.reduced_bytes = 10e9;
  cost.shard_bytes = 5e9;
  cost.output_bytes = 20e9;
  Machine machine{4, 10, 2, 0.5, 8, 4, 10, 20, 5};
  // Reading 5 s, copying 40 / 4 / 10 = 1, broadcast 2, computing (72 + 8) / 4 / 5 + (8 / 4 + 1) / 1 = 7, reducing 2, shards 1.25.
  RunEstimate times = estimate(m, cost, machine);
  std::vector<double> seconds;
  for (const StageTime& stage : times.sweep) seconds.push_back(stage.seconds);
  EXPECT_EQ(seconds, (std::vector<double>{5, 1, 2, 9, 1.25}));
  EXPECT_EQ(times.limit, "computing and reducing");
  EXPECT_EQ(times.sweep_seconds, 9 + (5 + 4 + 2) / 2.0);
  EXPECT_EQ(times.assembly_seconds, 5);
  EXPECT_EQ(times.total(), times.sweep_seconds + 5);
  EXPECT_EQ(times.floor, 10);
  machine.read = 4;
  EXPECT_EQ(estimate(m, cost, machine).limit, "reading");
  machine.ranks = 1;
  times = estimate(m, cost, machine);
  EXPECT_EQ(times.sweep[2].seconds, 0) << "one rank broadcasts nothing";
  EXPECT_EQ(times.sweep[3].seconds, 80 / 5.0 + 8 + 1);
}

TEST(Cost, ReconstructionAsItsPageSays) {
  // docs/reconstruction.md, "Cost": one and three rounds in statistics passes, experts alone.
  const auto all_of = [](const Cost& cost) { return cost.reconstruction_operations + cost.solving_operations + cost.factorisations; };
  const std::vector<std::pair<double, double>> page = {{0.97, 1.86}, {3.175, 6.38}, {3.15, 6.31}, {0.746, 1.37}};
  double worst = 0;
  for (size_t i = 0; i < models.size(); ++i) {
    const ModelSizes& m = models[i];
    const double pass =
        2 * product({double(m.moe_layers), double(m.hidden), double(m.expert_intermediate), 65536.0, double(2 * m.experts + m.top_k)});
    for (const int64_t rounds : {1, 3}) {
      const Cost cost = cost_of(m, workload(m, Reconstruction::full, rounds));
      const double ratio = all_of(cost) / pass;
      const double expected = rounds == 1 ? page[i].first : page[i].second;
      worst = std::max(worst, std::abs(ratio - expected));
      EXPECT_NEAR(ratio, expected, 0.006) << m.name << ", " << rounds << " rounds";
    }
  }
  // `auto` with three and one rounds, and one method with fitted rows, of Qwen1.5-MoE.
  const double pass = 2 * product({24.0, 2048.0, 1408.0, 65536.0, 124.0});
  for (const auto& [method, rounds, expected] :
       {std::tuple{"auto", 3, 5.08}, {"auto", 1, 3.31}, {"hc-smoe", 3, 1.87}, {"hc-smoe", 1, 0.986}}) {
    Workload work = workload(qwen, Reconstruction::full, rounds);
    work.recipe.method = method;
    work.recipe.router = RouterMerge::fitted;
    const Cost cost = cost_of(qwen, work);
    const double ratio = all_of(cost) / pass;
    worst = std::max(worst, std::abs(ratio - expected));
    EXPECT_NEAR(ratio, expected, 0.006) << method << ", " << rounds << " rounds";
  }
  std::printf("largest difference to the page: %.3f statistics passes\n", worst);
}

TEST(Cost, OperationsAreThoseOfASweep) {
  const Checkpoint checkpoint = Checkpoint::open(TEST_DATA "/demo/model");
  const ModelDescription model = describe_model(checkpoint);
  const ModelSizes sizes = sizes_of(model, static_cast<double>(checkpoint.total_bytes()), 2);
  const TensorInfo& gate = checkpoint.info(expert_tensor_name(model, 1, 0, ExpertPart::gate));
  EXPECT_EQ(sizes.expert_bytes, 3.0 * double(gate.bytes()));
  EXPECT_EQ(sizes.router_row_bytes * double(sizes.experts), double(checkpoint.info(tensor_name(model.names.router, 1)).bytes()));
  Workload work;
  work.sequences = 3;
  work.length = 37;
  work.kept = sizes.experts;
  for (const bool on_all : {true, false}) {
    work.statistics = on_all ? StatisticSet{Statistic::output_sum} : StatisticSet{};
    std::vector<at::Tensor> sequences;
    for (int64_t s = 0; s < work.sequences; ++s) sequences.push_back(at::arange(s, s + work.length, at::kInt));
    LayerSweep sweep(checkpoint, model, Compute{}, sequences);
    StatisticsAccumulator sums(model.experts, on_all ? model.expert_intermediate : 0);
    while (sweep.next_layer() < model.layers) sweep.run_layer(&sums);
    EXPECT_EQ(sweep.figures().operations, cost_of(sizes, work).sweep_operations);
    EXPECT_EQ(8.0 * double(model.layers) * double(sums.buffer.numel()), cost_of(sizes, work).reduced_bytes);
  }
}

TEST(Cost, Rates) {
  Machine machine;
  set_rate(machine, "read=3.5");
  EXPECT_EQ(machine.read, 3.5);
  set_rate(machine, "ranks=16");
  EXPECT_EQ(machine.ranks, 16);
  set_rate(machine, "efficiency=1");
  EXPECT_EQ(machine.efficiency, 1);
  for (const char* wrong : {"read", "read=", "read=fast", "read=0", "read=-1", "read=inf", "read=1x", "disk=1", "ranks=1.5", "=1", ""}) {
    EXPECT_THROW(set_rate(machine, wrong), UserError) << wrong;
  }
}

/// The tables of docs/performance.md, line by line.
TEST(Cost, ThePageHasTheseNumbers) {
  std::vector<std::string> lines;
  const auto line = [&](const std::string& name, const std::function<std::string(const ModelSizes&)>& value) {
    std::string text = "| " + name + " |";
    for (const ModelSizes& m : models) text += " " + value(m) + " |";
    lines.push_back(text);
  };
  const auto fixed = [](double value, int digits) {
    char text[32];
    std::snprintf(text, sizeof text, "%.*f", digits, value);
    return std::string(text);
  };
  const auto costs = [](const ModelSizes& m, Reconstruction r) { return cost_of(m, workload(m, r)); };
  line("checkpoint, GB", [&](const ModelSizes& m) { return fixed(m.total_bytes / 1e9, 1); });
  line("statistics, PFLOP", [&](const ModelSizes& m) { return fixed(costs(m, Reconstruction::none).sweep_operations / 1e15, 2); });
  line("reduced, GB", [&](const ModelSizes& m) { return fixed(costs(m, Reconstruction::none).reduced_bytes / 1e9, 2); });
  line("shards, GB", [&](const ModelSizes& m) { return fixed(costs(m, Reconstruction::none).shard_bytes / 1e9, 1); });
  line("output, GB", [&](const ModelSizes& m) { return fixed(costs(m, Reconstruction::none).output_bytes / 1e9, 1); });
  for (const Reconstruction r : {Reconstruction::none, Reconstruction::full}) {
    if (r == Reconstruction::full) {
      line("reconstruction, PFLOP", [&](const ModelSizes& m) { return fixed(costs(m, r).reconstruction_operations / 1e15, 2); });
      line("solutions in float32, PFLOP", [&](const ModelSizes& m) { return fixed(costs(m, r).solving_operations / 1e15, 3); });
      line("factorisations of every rank, PFLOP", [&](const ModelSizes& m) { return fixed(costs(m, r).factorisations / 1e15, 3); });
      line("reduced with it, GB", [&](const ModelSizes& m) { return fixed(costs(m, r).reduced_bytes / 1e9, 0); });
    }
    const auto times = [&, r](const ModelSizes& m) { return estimate(m, costs(m, r), Machine{}); };
    for (size_t stage = 0; stage < 5; ++stage) {
      if (r == Reconstruction::full && stage != 3) continue;
      line(times(qwen).sweep[stage].resource + ", s", [&](const ModelSizes& m) { return fixed(times(m).sweep[stage].seconds, 1); });
    }
    line("sweep, s", [&](const ModelSizes& m) { return fixed(times(m).sweep_seconds, 1); });
    line("limited by", [&](const ModelSizes& m) { return times(m).limit; });
    if (r == Reconstruction::none) line("assembly, s", [&](const ModelSizes& m) { return fixed(times(m).assembly_seconds, 1); });
    line("**total, s**", [&](const ModelSizes& m) { return "**" + fixed(times(m).total(), 1) + "**"; });
    line("of reading and writing once", [&](const ModelSizes& m) { return fixed(times(m).total() / times(m).floor, 2); });
  }
  std::ifstream file(TEST_DATA "/../../docs/performance.md");
  std::stringstream page;
  page << file.rdbuf();
  for (const std::string& text : lines) EXPECT_NE(page.str().find(text + "\n"), std::string::npos) << "docs/performance.md lacks\n" << text;
}
