// assemble_first_experts MODEL WORK OUTPUT EXPERTS MAX_SHARD_BYTES
// Assembles a model that keeps the first experts of each layer as they are. Its output is known without merging anything, so that other
// programs can check it (test_output_loads.py); also prints how long the assembly took.

#include <mpi.h>

#include <chrono>
#include <cstdio>
#include <exception>

#include "hcsmoe/assembly.h"
#include "hcsmoe/error.h"
#include "hcsmoe/shards.h"

namespace hcsmoe {
namespace {

void write_shard(const Checkpoint& checkpoint, const ModelDescription& model, int64_t layer, int64_t kept,
                 const std::filesystem::path& work) {
  ShardWriter writer(shard_file(work, layer), layer, {checkpoint.fingerprint(), "the first experts"});
  for (const std::string& name : moe_tensor_names(model, layer, kept)) {
    const TensorInfo& info = checkpoint.info(name);
    std::vector<int64_t> shape = info.shape;
    if (name == tensor_name(model.names.router, layer)) shape[0] = kept;
    uint64_t bytes = static_cast<uint64_t>(info.dtype.bytes);
    for (const int64_t size : shape) bytes *= static_cast<uint64_t>(size);
    writer.write(name, info.dtype, shape, checkpoint.bytes(name).first(bytes));
  }
  writer.finish();
}

void assemble_first_experts(char** arguments) {
  const Ranks ranks(MPI_COMM_WORLD);
  const Checkpoint checkpoint = Checkpoint::open(arguments[1]);
  const ModelDescription model = describe_model(checkpoint);
  const int64_t kept = std::stoll(arguments[4]), max_shard_bytes = std::stoll(arguments[5]);
  ranks.on_all([&] {
    for (const int64_t layer : model.moe_layers()) {
      if (ranks.owner_of(layer) == ranks.rank()) write_shard(checkpoint, model, layer, kept, arguments[2]);
    }
  });
  const auto start = std::chrono::steady_clock::now();
  const AssemblySummary summary = assemble(ranks, checkpoint, model, kept, max_shard_bytes, arguments[2], arguments[3]);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (ranks.is_root()) {
    std::printf("%lld files, %.1f MB, %.3f s, %.0f MB/s\n", static_cast<long long>(summary.files), static_cast<double>(summary.bytes) / 1e6,
                seconds, static_cast<double>(summary.bytes) / 1e6 / seconds);
  }
}

}  // namespace
}  // namespace hcsmoe

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int result = 0;
  try {
    if (argc != 6) throw hcsmoe::UserError("assemble_first_experts MODEL WORK OUTPUT EXPERTS MAX_SHARD_BYTES");
    hcsmoe::assemble_first_experts(argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    result = 1;
  }
  MPI_Finalize();
  return result;
}
