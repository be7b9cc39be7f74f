// inspect: what a run would read, hold and write, without a calibration pass. The dry run.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <vector>

#include "commands/job.h"
#include "commands/sheet.h"
#include "commands/usage_table.h"
#include "hcsmoe/assembly.h"
#include "hcsmoe/cost.h"
#include "hcsmoe/error.h"
#include "hcsmoe/merging.h"
#include "hcsmoe/reconstruction.h"
#include "hcsmoe/sample.h"
#include "support/free_memory.h"

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

void print_cost(const Job& job, const Machine& machine, double bytes_a_weight, Sheet& sheet) {
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
  const auto line = [&](const std::string& name, const std::string& value) { sheet.line(name, value); };
  sheet.begin("cost", "on " + machine_text(machine) + ", without evaluation (docs/performance.md)");
  sheet.set("ranks", machine.ranks);
  sheet.set("statistics_operations", cost.sweep_operations + cost.sample_operations);
  sheet.set("reconstruction_operations", cost.reconstruction_operations + cost.solving_operations + cost.factorisations);
  sheet.set("read_bytes", cost.read_bytes);
  sheet.set("reduced_bytes", cost.reduced_bytes);
  sheet.set("shard_bytes", cost.shard_bytes);
  sheet.set("output_bytes", cost.output_bytes);
  nlohmann::ordered_json stages = nlohmann::ordered_json::object();
  for (const StageTime& stage : times.sweep) stages[stage.resource] = stage.seconds;
  sheet.set("seconds", {{"sweep", times.sweep_seconds},
                        {"sweep_limited_by", times.limit},
                        {"sweep_busy", stages},
                        {"assembly", times.assembly_seconds},
                        {"total", times.total()},
                        {"floor", times.floor}});
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

/// Residual streams of `tokens` tokens, as a run saves them to go on from.
double streams_bytes(const ModelDescription& model, const Recipe& recipe, int64_t tokens) {
  if (model.layers == 1) return 0;  // nothing is saved after the last layer
  const double one = 4.0 * static_cast<double>(tokens) * static_cast<double>(model.hidden_size);
  return needs_tokens(recipe) && recipe.propagate == Propagate::compressed ? 2 * one : one;
}

/// What other numbers of experts would leave: those asked for, and shares of all that the router can use.
void print_sizes(const Job& job, Sheet& sheet) {
  const int64_t E = job.model.experts;
  std::vector<int64_t> counts = {E, E * 7 / 8, E * 3 / 4, E * 5 / 8, E / 2, E * 3 / 8, E / 4, E / 8, job.experts_kept()};
  std::sort(counts.rbegin(), counts.rend());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  sheet.begin("", "weights by the number of experts a layer");
  nlohmann::ordered_json sizes = nlohmann::ordered_json::array();
  for (const int64_t K : counts) {
    if (K < job.model.routing.top_k) continue;
    uint64_t weights = 0;
    for (const OutputFile& file : output_layout(job.checkpoint, job.model, K, job.config.output_files.max_shard_bytes)) {
      for (const OutputTensor& tensor : file.tensors) weights += tensor.info.bytes();
    }
    char share[64];
    std::snprintf(share, sizeof share, "%s, %.1f %%", format_bytes(static_cast<double>(weights)).c_str(),
                  100 * static_cast<double>(weights) / static_cast<double>(job.checkpoint.total_bytes()));
    sheet.line("  " + std::to_string(K), std::string(share) + (K == job.experts_kept() ? "  <- compression.experts" : ""));
    sizes.push_back({{"experts", K}, {"bytes", weights}});
  }
  sheet.set("sizes", sizes);
}

/// From the statistics in the work folder, as far as they are there and of this checkpoint.
void print_usage(const Job& job, Sheet& sheet) {
  std::vector<LayerUsage> layers;
  for (const int64_t layer : job.model.moe_layers()) {
    if (job.config.work.empty()) break;
    const auto file = statistics_file(job.config.work, layer);
    if (!std::filesystem::exists(file)) continue;
    try {
      StatisticsOrigin origin;
      const ExpertStatistics statistics = load_statistics(file, &origin);
      if (origin.checkpoint != job.summary.origin.checkpoint) throw UserError(file.string() + " is of another checkpoint");
      layers.push_back(usage_of(statistics));
    } catch (const UserError& error) {
      job.log.warn(std::string(error.what()) + ": left out");
    }
  }
  nlohmann::ordered_json usage = nlohmann::ordered_json::array();
  for (const LayerUsage& u : layers) {
    usage.push_back({{"layer", u.layer},
                     {"experts", u.experts},
                     {"tokens", u.tokens},
                     {"busiest", {{"expert", u.busiest_expert}, {"share", u.busiest}}},
                     {"least", {{"expert", u.least_expert}, {"share", u.least}}},
                     {"unused", u.unused},
                     {"gini", u.gini}});
    if (u.alike) {
      usage.back()["alike"] = u.alike->experts;
      usage.back()["nearest"] = {{"experts", {u.alike->pair.first, u.alike->pair.second}}, {"distance", u.alike->nearest}};
    }
  }
  if (layers.empty()) {
    sheet.begin("", "usage of experts");
    sheet.text("  not known: `hcsmoe_dist collect` or a run measures it");
  } else {
    char even[32];
    std::snprintf(even, sizeof even, "%.2f %%", 100.0 / static_cast<double>(job.model.experts));
    sheet.begin("", "usage of experts on " + std::to_string(layers.front().tokens) + " calibration tokens (even: " + even +
                        " each; alike: mean outputs less than 1 % apart)");
    for (const std::string& line : usage_table(layers)) sheet.text(line);
  }
  sheet.set("usage", usage);
}

void print_duplicates(const Job& job, Sheet& sheet) {
  sheet.begin("", "experts of equal weights");
  nlohmann::ordered_json found = nlohmann::ordered_json::array();
  for (const int64_t layer : job.model.moe_layers()) {
    const auto groups = equal_experts(job.checkpoint, job.model, layer);
    std::string text;
    for (const auto& group : groups) {
      text += text.empty() ? "" : "; ";
      for (size_t i = 0; i < group.size(); ++i) text += (i > 0 ? " = " : "") + std::to_string(group[i]);
    }
    if (!groups.empty()) sheet.line("  layer " + std::to_string(layer), text);
    found.push_back({{"layer", layer}, {"groups", groups}});
  }
  if (std::all_of(found.begin(), found.end(), [](const auto& layer) { return layer["groups"].empty(); })) sheet.text("  none");
  sheet.set("duplicates", found);
}

/// Of the disk that a folder lies on, or will lie on.
double free_disk(std::filesystem::path folder) {
  std::error_code failure;
  folder = std::filesystem::absolute(folder);
  while (!std::filesystem::exists(folder, failure) && folder.has_relative_path()) folder = folder.parent_path();
  const auto space = std::filesystem::space(folder, failure);
  return failure ? NAN : static_cast<double>(space.available);
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
    Sheet sheet;
    const auto line = [&](const std::string& name, const std::string& value) { sheet.line(name, value); };
    const auto sized = [&](const std::string& name, double n, const std::string& key, const std::string& after = "") {
      sheet.line(name, format_bytes(n) + after, key, n);
    };
    const auto bytes = [](double n) { return format_bytes(n); };
    const int64_t moe = job.summary.moe_layers, P = job.ranks.size();

    sheet.begin("model");
    sheet.set("folder", job.config.model.string());
    sheet.set("family", m.family);
    sheet.set("layers", m.layers);
    sheet.set("moe_layers", moe);
    sheet.set("experts", m.experts);
    sheet.set("top_k", m.routing.top_k);
    sheet.set("hidden_size", m.hidden_size);
    sheet.set("expert_intermediate", m.expert_intermediate);
    sheet.set("bytes", job.checkpoint.total_bytes());
    sheet.set("files", job.checkpoint.files().size());
    sheet.set("tensors", job.checkpoint.tensors().size());
    sheet.set("dtype", job.checkpoint.info(expert_tensor_name(m, m.moe_layers().front(), 0, ExpertPart::gate)).dtype.name);
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
      sheet.begin("a_gpu", "a GPU of " + bytes(gpu) + " (device.memory) a rank");
      sheet.set("bytes", gpu);
      sized("  weights, 2 layers", memory.weights, "weights");
      if (memory.converted > 0) sized("  converted weights", memory.converted, "converted_weights");
      sized("  tokens", memory.tokens, "tokens");
      sized("  computed at a time", memory.blocks + memory.sums, "computed_at_a_time");
      sized("  CUDA and NCCL", memory.libraries, "libraries");
      sized("  total", memory.total(), "total");
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
    sheet.begin("a_rank", "a rank of " + std::to_string(P) + ", " + std::to_string(compute.threads) +
                              (compute.threads == 1 ? " thread, " : " threads, ") + dtype_name(compute) + ", " + std::to_string(sequences) +
                              " sequences of " + std::to_string(calibration.length) + " tokens");
    sheet.set("ranks", P);
    sheet.set("threads", compute.threads);
    sheet.set("dtype", dtype_name(compute));
    sheet.set("sequences", sequences);
    sheet.set("length", calibration.length);
    sized("  mapped weights, 2 layers", 2 * largest_layer, "mapped_weights", " (shared by the ranks of a node)");
    sized("  hidden states", hidden, "hidden_states");
    sheet.line("  one expert's tokens", "at most " + bytes(routed), "one_experts_tokens", routed);
    sized("  buffers and sums", work + sums, "buffers_and_sums");
    const Recipe& recipe = job.config.compression;
    sized("  streams that are saved", streams_bytes(m, recipe, N), "saved_streams", " (while they are written; save_every)");
    const Merge merge = job.config.compression.merge;
    const int64_t sample = std::min(calibration.sample, calibration.sequences * calibration.length);
    if (aligns(merge)) sized("  alignment (" + to_string(merge) + ")", alignment_bytes(m, merge, sample, compute.threads), "alignment");

    const int64_t K = job.config.compression.experts.count > 0 || job.config.compression.experts.share > 0 ? job.experts_kept() : 0;
    if (K == 0) throw Error("inspect without compression.experts");
    if (const double samples = sample_statistics_bytes(m, statistics_needed(recipe), sample, compute.threads); samples > 0) {
      sheet.line("  sampled tokens", "at most " + bytes(samples) + " (rank 0)", "sampled_tokens", samples);
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
      sized("  reconstruction", memory.total(), "reconstruction");
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
    const double statistics =
        static_cast<double>(moe) * 8.0 * static_cast<double>(m.experts) * static_cast<double>(m.hidden_size + m.experts);
    sized("  free in this machine", static_cast<double>(free_memory()), "free");

    print_sizes(job, sheet);
    print_usage(job, sheet);
    if (job.line.duplicates) print_duplicates(job, sheet);

    sheet.begin("output", "with " + std::to_string(K) + " experts a layer (" + recipe.method + ")");
    sheet.set("experts", K);
    sheet.set("method", recipe.method);
    sheet.line("  output",
               bytes(output) + " in " + std::to_string(files) + (files == 1 ? " file, " : " files, ") + share + " of the original", "bytes",
               output);
    sheet.set("files", files);
    const double streams = 2 * streams_bytes(m, recipe, calibration.sequences * calibration.length);  // of the last two layers
    line("  work folder", bytes(shards) + " of merged shards, " + bytes(statistics) + " of statistics, and until the sweep ends " +
                              bytes(streams) + " of residual streams");
    sheet.begin("disk");
    sheet.set("shards", shards);
    sheet.set("statistics", statistics);
    sheet.set("streams", streams);
    if (!job.config.output.empty()) sized("  free for the output", free_disk(job.config.output), "free_for_output");
    if (!job.config.work.empty()) sized("  free for the work folder", free_disk(job.config.work), "free_for_work");
    const DType& stored = job.checkpoint.info(expert_tensor_name(m, m.moe_layers().front(), 0, ExpertPart::gate)).dtype;
    print_cost(job, machine, static_cast<double>(stored.bytes), sheet);
    job.result = sheet.json().dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
    if (!job.line.json) std::fwrite(sheet.text().data(), 1, sheet.text().size(), stdout);
  });
}

}  // namespace hcsmoe
