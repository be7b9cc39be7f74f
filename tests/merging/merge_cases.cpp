// Answers test_against_scipy.py, which makes the cases and judges the answers.
//   merge_cases assign CASES ANSWERS                     cases: n (int64), scores [n, n] float32; answers: columns [n] int32
//   merge_cases merge MODEL PLAN SAMPLES OUT THREADS     under mpirun: aligns every layer of the plan by the merge of its recipe, and
//   merges
//                                                        it. SAMPLES: float32 [layers, S, D]. OUT/units.bin: int32, the maps of all
//                                                        clusters that have one; OUT/tensors.json, tensors.bin: the merged tensors
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <mpi.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "hcsmoe/merging.h"
#include "merging/assignment.h"

namespace {

using namespace hcsmoe;

std::string content(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(in), {}};
}

void assign(const std::string& cases, const std::string& answers) {
  const std::string bytes = content(cases);
  std::ofstream out(answers, std::ios::binary);
  for (size_t at = 0; at < bytes.size();) {
    int64_t n = 0;
    std::memcpy(&n, bytes.data() + at, sizeof n);
    std::vector<float> scores(static_cast<size_t>(n * n));
    std::memcpy(scores.data(), bytes.data() + at + sizeof n, scores.size() * sizeof(float));
    at += sizeof n + scores.size() * sizeof(float);
    const std::vector<int32_t> columns = best_assignment(scores, n);
    out.write(reinterpret_cast<const char*>(columns.data()), static_cast<std::streamsize>(columns.size() * sizeof(int32_t)));
  }
}

void merge_checkpoint(const std::string& model_folder, const std::string& plan_file, const std::string& samples,
                      const std::filesystem::path& out, int threads) {
  at::set_num_threads(threads);
  const Ranks ranks(MPI_COMM_WORLD);
  const Checkpoint checkpoint = Checkpoint::open(model_folder);
  const ModelDescription model = describe_model(checkpoint);
  const Plan plan = load_plan(plan_file);
  const std::string bytes = content(samples);
  const size_t layer_bytes = bytes.size() / plan.layers.size();
  std::ofstream units_out, data_out;
  if (ranks.is_root()) {
    std::filesystem::create_directories(out);
    units_out.open(out / "units.bin", std::ios::binary);
    data_out.open(out / "tensors.bin", std::ios::binary);
  }
  nlohmann::ordered_json index;
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    at::Tensor x = at::empty({static_cast<int64_t>(layer_bytes / sizeof(float)) / model.hidden_size, model.hidden_size}, at::kFloat);
    std::memcpy(x.mutable_data_ptr(), bytes.data() + l * layer_bytes, x.nbytes());
    const LayerUnits units = align_layer(checkpoint, model, plan.layers[l], plan.recipe.merge, x, ranks);
    if (!ranks.is_root()) continue;
    for (const UnitMap& map : units) {
      for (const auto& target : map) {
        units_out.write(reinterpret_cast<const char*>(target.data()), static_cast<std::streamsize>(target.size() * sizeof(int32_t)));
      }
    }
    merge_layer(
        checkpoint, model, plan.layers[l],
        [&](const std::string& name, const DType& dtype, const std::vector<int64_t>& shape, std::span<const std::byte> tensor) {
          index[name] = {{"dtype", dtype.name}, {"shape", shape}, {"begin", static_cast<int64_t>(data_out.tellp())}};
          data_out.write(reinterpret_cast<const char*>(tensor.data()), static_cast<std::streamsize>(tensor.size()));
        },
        units);
  }
  if (ranks.is_root()) std::ofstream(out / "tensors.json") << index.dump();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments.size() == 3 && arguments[0] == "assign") {
      assign(arguments[1], arguments[2]);
      return 0;
    }
    if (arguments.size() != 6 || arguments[0] != "merge") throw std::runtime_error("wrong arguments");
    MPI_Init(&argc, &argv);
    merge_checkpoint(arguments[1], arguments[2], arguments[3], arguments[4], std::stoi(arguments[5]));
    MPI_Finalize();
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    std::_Exit(1);
  }
}
