// inspect: what a run would read, hold and write, without a calibration pass. The dry run.

#include <algorithm>
#include <cstdio>
#include <functional>

#include "commands/job.h"
#include "hcsmoe/assembly.h"
#include "hcsmoe/cost.h"
#include "hcsmoe/merging.h"
#include "hcsmoe/reconstruction.h"
#include "hcsmoe/sample.h"

namespace hcsmoe {
namespace {

double layer_bytes(const Checkpoint& checkpoint, const ModelDescription& model, int64_t layer) {
  double bytes = 0;
  for (const std::string& name : layer_tensor_names(model, layer)) bytes += static_cast<double>(checkpoint.info(name).bytes());
  return bytes;
}

/// Buffers that hold weights in the type of computation, where the checkpoint's is another: attention, shared expert, one routed expert.
double converted_bytes(const ModelDescription& m, int64_t element) {
  const auto size = [](int64_t a, int64_t b) { return static_cast<double>(a) * static_cast<double>(b); };
  double attention = size(m.hidden_size, 2 * (m.heads + m.key_value_heads) * m.head_size);
  if (m.latent) {
    const LatentAttention& latent = *m.latent;
    const int64_t queries = m.heads * latent.key_size(), low = latent.query_rank;
    attention = (low > 0 ? size(low, m.hidden_size + queries) : size(m.hidden_size, queries)) +
                size(m.hidden_size, latent.key_value_rank + latent.rotary) +
                size(latent.key_value_rank, m.heads * (latent.plain + latent.value)) + size(m.hidden_size, m.heads * latent.value);
  }
  const double block = 3 * size(m.hidden_size, std::max({m.expert_intermediate, m.shared_intermediate, m.dense_intermediate}));
  return (attention + block) * static_cast<double>(element);
}

std::string padded(std::string text, size_t width) {
  text.resize(std::max(width, text.size()), ' ');
  return text;
}

using PrintLine = std::function<void(const std::string& name, const std::string& value)>;

void print_cost(const Job& job, const Machine& machine, double bytes_a_weight, const PrintLine& line) {
  const auto& calibration = job.config.calibration;
  Workload work{calibration.sequences, calibration.length,    job.experts_kept(), statistics_needed(job.config.compression),
                calibration.sample,    job.config.compression};
  const ModelSizes sizes = sizes_of(job.model, static_cast<double>(job.checkpoint.total_bytes()), bytes_a_weight);
  const Cost cost = cost_of(sizes, work);
  const RunEstimate times = estimate(sizes, cost, machine);
  const auto operations = [](double n) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g TFLOP", n / 1e12);
    return std::string(text);
  };
  std::printf("\non %s, without evaluation (docs/performance.md)\n", machine_text(machine).c_str());
  const double reconstruction = cost.reconstruction_operations + cost.solving_operations + cost.factorisations;
  line("  products", operations(cost.sweep_operations + cost.sample_operations) + " of statistics" +
                         (reconstruction > 0 ? ", " + operations(reconstruction) + " of reconstruction" : ""));
  line("  read, copied, broadcast", format_bytes(cost.read_bytes));
  line("  reduced", format_bytes(cost.reduced_bytes));
  line("  written", format_bytes(cost.shard_bytes) + " of shards, " + format_bytes(cost.output_bytes) + " of output");
  std::string parts;
  for (const StageTime& stage : times.sweep) {
    if (stage.seconds > 0) parts += (parts.empty() ? "" : ", ") + stage.resource + " " + format_duration(stage.seconds);
  }
  line("  sweep", format_duration(times.sweep_seconds) + ", limited by " + times.limit + " (" + parts + ")");
  line("  assembly", format_duration(times.assembly_seconds));
  char ratio[32];
  std::snprintf(ratio, sizeof ratio, "%.2f", times.total() / times.floor);
  line("  total", format_duration(times.total()) + ", " + ratio + " of reading and writing once");
}

}  // namespace

void inspect(Job& job) {
  const Compute compute = choose_compute(job);
  if (job.config.compression.experts.count > 0 || job.config.compression.experts.share > 0) check_budget(job);
  job.ranks.on_root([&] {
    Machine machine;
    for (const std::string& rate : job.line.machine) set_rate(machine, rate);
    const ModelDescription& m = job.model;
    const auto& calibration = job.config.calibration;
    const auto line = [](const std::string& name, const std::string& value) {
      std::printf("%s%s\n", padded(name, 28).c_str(), value.c_str());
    };
    const auto bytes = [](double n) { return format_bytes(n); };
    const int64_t moe = job.summary.moe_layers, P = job.ranks.size();

    line("model", job.config.model.string());
    line("family", m.family);
    line("layers", std::to_string(m.layers) + ", " + std::to_string(moe) + " with experts");
    line("experts a layer",
         std::to_string(m.experts) + ", top-" + std::to_string(m.routing.top_k) +
             (m.routing.score == RoutingRule::Score::sigmoid ? " by sigmoid scores" : "") +
             (m.routing.groups > 1 ? " in " + std::to_string(m.routing.top_groups) + " of " + std::to_string(m.routing.groups) + " groups"
                                   : "") +
             (m.shared_intermediate > 0 ? ", shared expert of width " + std::to_string(m.shared_intermediate) : ""));
    line("hidden, expert width", std::to_string(m.hidden_size) + ", " + std::to_string(m.expert_intermediate));
    line("weights", bytes(static_cast<double>(job.checkpoint.total_bytes())) + " in " + std::to_string(job.checkpoint.files().size()) +
                        (job.checkpoint.files().size() == 1 ? " file, " : " files, ") + std::to_string(job.checkpoint.tensors().size()) +
                        " tensors, " + job.checkpoint.info(expert_tensor_name(m, m.moe_layers().front(), 0, ExpertPart::gate)).dtype.name);

    if (job.config.device.type == DeviceType::cuda) {
      const DeviceSizes sizes = device_sizes(job, compute);
      const DeviceMemory memory = device_memory(sizes);
      const double gpu = job.config.device.memory > 0 ? static_cast<double>(job.config.device.memory) : 80e9;
      std::printf("\na GPU of %s (device.memory) a rank\n", bytes(gpu).c_str());
      line("  weights, 2 layers", bytes(memory.weights));
      if (memory.converted > 0) line("  converted weights", bytes(memory.converted));
      line("  tokens", bytes(memory.tokens));
      line("  computed at a time", bytes(memory.blocks + memory.sums));
      line("  CUDA and NCCL", bytes(memory.libraries));
      line("  total", bytes(memory.total()));
      line("  read ahead (host)", bytes(static_cast<double>(compute.read_ahead) / job.ranks.local_size()));
      check_fits(sizes, gpu, job.ranks.size());
    }

    double largest_layer = 0;
    for (int64_t l = 0; l < m.layers; ++l) largest_layer = std::max(largest_layer, layer_bytes(job.checkpoint, m, l));
    const int64_t sequences = (calibration.sequences + P - 1) / P, N = sequences * calibration.length;
    const auto element = static_cast<int64_t>(compute.dtype == at::kBFloat16 ? 2 : 4);
    const bool converts =
        job.checkpoint.info(expert_tensor_name(m, m.moe_layers().front(), 0, ExpertPart::gate)).dtype.torch != compute.dtype;
    const double hidden = static_cast<double>(N) * static_cast<double>(m.hidden_size) * static_cast<double>(4 + 4 + element);
    const double routed = static_cast<double>(N) * static_cast<double>(m.expert_intermediate) * static_cast<double>(element);
    const double work = static_cast<double>(compute.threads) * 512.0 * static_cast<double>(2 * m.expert_intermediate + 2 * m.hidden_size) *
                            static_cast<double>(element) +
                        (converts ? converted_bytes(m, element) : 0.0);
    const double sums = 16.0 * static_cast<double>(m.experts) * static_cast<double>(m.expert_intermediate + m.experts);
    std::printf("\na rank of %lld, %d thread%s, %s, %lld sequences of %lld tokens\n", static_cast<long long>(P), compute.threads,
                compute.threads == 1 ? "" : "s", dtype_name(compute).c_str(), static_cast<long long>(sequences),
                static_cast<long long>(calibration.length));
    line("  mapped weights, 2 layers", bytes(2 * largest_layer) + " (shared by the ranks of a node)");
    line("  hidden states", bytes(hidden));
    line("  one expert's tokens", "at most " + bytes(routed));
    line("  buffers and sums", bytes(work + sums));
    const Merge merge = job.config.compression.merge;
    const int64_t sample = std::min(calibration.sample, calibration.sequences * calibration.length);
    if (aligns(merge)) line("  alignment (" + to_string(merge) + ")", bytes(alignment_bytes(m, merge, sample, compute.threads)));

    const int64_t K = job.config.compression.experts.count > 0 || job.config.compression.experts.share > 0 ? job.experts_kept() : 0;
    if (K == 0) return;
    const Recipe& recipe = job.config.compression;
    if (const double samples = sample_statistics_bytes(m, statistics_needed(recipe), sample, compute.threads); samples > 0) {
      line("  sampled tokens", "at most " + bytes(samples) + " (rank 0)");
    }
    if (needs_tokens(recipe)) {
      ReconstructionSize size;
      size.what = recipe.reconstruction;
      size.fits_rows = recipe.router == RouterMerge::fitted;
      size.propagate = recipe.propagate == Propagate::compressed;
      size.several = recipe.method == "auto";
      size.hidden = m.hidden_size;
      size.intermediate = m.expert_intermediate;
      size.kept = K;
      size.tokens = N;
      size.expert_tokens = std::min(N, 2 * N * m.routing.top_k / K);
      size.all_tokens = calibration.sequences * calibration.length;
      size.weight_bytes =
          static_cast<int>(job.checkpoint.info(expert_tensor_name(m, m.moe_layers().front(), 0, ExpertPart::gate)).dtype.bytes);
      size.compute_bytes = static_cast<int>(element);
      size.ranks = static_cast<int>(P);
      size.threads = compute.threads;
      const ReconstructionMemory memory = reconstruction_memory(size);
      line("  reconstruction", bytes(memory.total()));
      line("    experts of the block", bytes(memory.experts));
      line("    tokens of the block", bytes(memory.tokens));
      if (recipe.reconstruction != Reconstruction::full && size.fits_rows) line("    equations of the router", bytes(memory.matrices));
      if (recipe.reconstruction == Reconstruction::full) {
        line("    the fit of one expert",
             bytes(memory.expert_tokens) + " with twice the mean number of tokens, and " + bytes(memory.matrices) + " of its equations");
      }
      if (recipe.reconstruction != Reconstruction::none) line("    or: the router's outputs", bytes(memory.output_grams));
    }
    double output = 0, shards = 0;
    size_t files = 0;
    for (const OutputFile& file : output_layout(job.checkpoint, m, K, job.config.output_files.max_shard_bytes)) {
      output += static_cast<double>(file.bytes);
      for (const OutputTensor& tensor : file.tensors) shards += tensor.from_shard ? static_cast<double>(tensor.info.bytes()) : 0;
      ++files;
    }
    char share[16];
    std::snprintf(share, sizeof share, "%.1f %%", 100 * output / static_cast<double>(job.checkpoint.total_bytes()));
    std::printf("\nwith %lld experts a layer (%s)\n", static_cast<long long>(K), job.config.compression.method.c_str());
    line("  output", bytes(output) + " in " + std::to_string(files) + (files == 1 ? " file, " : " files, ") + share + " of the original");
    line("  work folder",
         bytes(shards) + " of merged shards, " +
             bytes(static_cast<double>(moe) * 8.0 * static_cast<double>(m.experts) * static_cast<double>(m.hidden_size + m.experts)) +
             " of statistics");
    const DType& stored = job.checkpoint.info(expert_tensor_name(m, m.moe_layers().front(), 0, ExpertPart::gate)).dtype;
    print_cost(job, machine, static_cast<double>(stored.bytes), line);
  });
}

}  // namespace hcsmoe
