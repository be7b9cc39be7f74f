// reconstruct_cases FOLDER: does the steps that FOLDER/case.json lists, one after the other, on the block and tokens of FOLDER/*.npy, and
// writes what they leave as FOLDER/out_*.npy. For test_against_reference.py, under any number of ranks.

#include <ATen/Parallel.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <mpi.h>

#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "hcsmoe/calibration.h"
#include "hcsmoe/error.h"
#include "hcsmoe/plan.h"
#include "reconstruction/block_fit.h"
#include "reconstruction/router_rows.h"
#include "reconstruction/token_outputs.h"

namespace {

using namespace hcsmoe;

void run(const std::filesystem::path& folder, const Ranks& ranks) {
  const auto json = nlohmann::json::parse(std::ifstream(folder / "case.json"));
  const auto read = [&](const std::string& name) { return read_npy(folder / (name + ".npy")).to(at::kFloat); };
  const int64_t sequences = json["sequences"], length = json["length"];
  const SequenceShare share = deal_sequences(sequences, length, ranks);
  const auto mine = [&](const at::Tensor& all) {  // [sequences * length, D]
    return all.narrow(0, share.first * length, share.number * length).contiguous();
  };
  const LayerPlan plan = layer_plan_from_json(json["plan"].dump(), "case.json");
  RoutingRule rule{json["top_k"], json["renormalise"], json["scale"]}, kept = rule;
  if (json.contains("correction")) {
    rule.score = kept.score = RoutingRule::Score::sigmoid;
    rule.correction = json["correction"]["original"].get<std::vector<float>>();
    kept.correction = json["correction"]["rows"].get<std::vector<float>>();
  }
  const at::Tensor original = read("original"), gate = read("gate"), up = read("up"), down = read("down");  // gate, up [K, F, D]
  SparseBlock block{read("rows"), {}, {}};
  for (int64_t k = 0; k < gate.size(0); ++k) block.experts.push_back({gate[k], up[k], down[k]});
  const Compute compute{at::kFloat, json["threads"], 1};
  at::set_num_threads(compute.threads);
  const BlockTokens tokens{mine(read("input")), mine(read("target")), share.groups};
  BlockFit fit(tokens, kept, block, compute, ranks);
  const RouterTokens router_tokens(tokens);
  at::Tensor rows = fit.rows.to(at::kDouble);
  for (const std::string step : json["steps"]) {
    if (step == "least squares") {
      rows = rows_by_least_squares(router_tokens, original, plan, rule, fit.rows, ranks);
      fit.set_rows(rows);
    } else if (step == "cross entropy") {
      rows = rows_by_cross_entropy(router_tokens, original, plan, rule, fit.rows, ranks);
      fit.set_rows(rows);
    } else if (step == "biases") {
      fit.rule.correction = matched_biases(router_tokens, original, plan, rule, fit.rule, fit.rows, ranks);
      fit.set_rows(fit.rows);
    } else if (step == "output error") {
      rows = rows_by_output_error(token_outputs(tokens, 1, fit.experts, fit.down, compute), fit.rule, fit.rows, ranks);
      fit.set_rows(rows);
    } else {
      fit.fit_experts(step == "experts");
    }
  }
  if (!ranks.is_root()) return;
  const auto stacked = [&](at::Tensor ExpertWeights::*part) {
    std::vector<at::Tensor> all;
    for (const ExpertWeights& expert : fit.experts) all.push_back(expert.*part);
    return at::stack(all).contiguous();
  };
  write_npy(folder / "out_rows.npy", rows.contiguous());
  const std::vector<float>& biases = fit.rule.correction;
  write_npy(folder / "out_biases.npy", at::tensor(at::ArrayRef<float>(biases.data(), biases.size())));
  write_npy(folder / "out_gate.npy", stacked(&ExpertWeights::gate));
  write_npy(folder / "out_up.npy", stacked(&ExpertWeights::up));
  write_npy(folder / "out_down.npy", at::stack(fit.down).contiguous());
  std::printf("%.17g\n", fit.error);
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int status = 1;
  try {
    const Ranks ranks(MPI_COMM_WORLD);
    run(argc > 1 ? argv[1] : ".", ranks);
    status = 0;
  } catch (const std::exception& error) {
    std::cerr << "reconstruct_cases: " << error.what() << "\n";
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return status;
}
