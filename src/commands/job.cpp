#include "commands/job.h"

#include <sys/statvfs.h>

#include <algorithm>

#include "commands/job_record.h"
#include "commands/result.h"
#include "commands/resumption.h"
#include "hcsmoe/assembly.h"
#include "hcsmoe/error.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

uint64_t free_bytes(std::filesystem::path folder) {
  while (!folder.empty() && !std::filesystem::exists(folder)) folder = folder.parent_path();
  struct statvfs disk {};
  if (statvfs(folder.empty() ? "." : folder.c_str(), &disk) != 0) return UINT64_MAX;
  return static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
}

}  // namespace

void run_command(const CommandLine& line, const Config& config, const Ranks& ranks, Log& log, Trace* trace, StopRequest& stop) {
  if (line.command == Command::verify) return verify(line, config, ranks, log, trace, stop);
  Job job = open_job(line, config, ranks, log, trace, stop);
  const auto work = [&] {
    switch (line.command) {
      case Command::run:
        return run(job);
      case Command::inspect:
        return inspect(job);
      case Command::collect:
        return collect(job);
      case Command::plan:
        return plan(job);
      case Command::apply:
        return apply(job);
      case Command::evaluate:
        return evaluate(job);
      case Command::report:
        return report(job);
      case Command::verify:
        break;  // above
    }
  };
  work();
  ranks.on_all([&] { job.checkpoint.require_unchanged(); });
  ranks.on_root([&] {
    if (line.json) print_result(job);
  });
}

Job open_job(const CommandLine& line, const Config& config, const Ranks& ranks, Log& log, Trace* trace, StopRequest& stop) {
  const Span span(trace, Activity::reading, "headers");
  std::optional<Checkpoint> checkpoint;
  std::optional<ModelDescription> model;
  const auto open = [&] {
    if (checkpoint) return;
    checkpoint.emplace(Checkpoint::open(config.model));
    model.emplace(describe_model(*checkpoint));
  };
  ranks.on_root(open);
  ranks.on_all(open);
  ranks.require_same("the checkpoint " + config.model.string(), checkpoint->tensor_lines());
  Job job{line, config, ranks, log, trace, stop, std::move(*checkpoint), std::move(*model), {}};
  Summary& summary = job.summary;
  summary.command = to_string(line.command);
  summary.moe_layers = static_cast<int64_t>(job.model.moe_layers().size());
  summary.experts = job.model.experts;
  summary.model_bytes = job.checkpoint.total_bytes();
  std::string fingerprint;
  ranks.on_root([&] { fingerprint = job.checkpoint.fingerprint(); });
  ranks.broadcast(fingerprint, 0);
  summary.origin.checkpoint = fingerprint;
  return job;
}

std::vector<std::string> texts_of_root(const Ranks& ranks, const std::vector<std::string>& texts) {
  std::string joined;  // each behind its length
  for (const std::string& text : texts) joined += std::to_string(text.size()) + ":" + text;
  ranks.broadcast(joined, 0);
  std::vector<std::string> all;
  for (size_t at = 0; at < joined.size();) {
    const size_t begin = joined.find(':', at) + 1, length = std::stoull(joined.substr(at, begin - at));
    all.push_back(joined.substr(begin, length));
    at = begin + length;
  }
  return all;
}

Compute choose_compute(const Job& job) {
  Compute compute = choose_compute(job.config.device, job.checkpoint, job.model, job.ranks);
  compute.trace = job.trace;
  return compute;
}

void open_work(Job& job) {
  if (job.config.work.empty()) return;  // evaluate without a work folder only prints
  job.ranks.on_root([&] {
    make_folder(job.config.work);
    job.lock = std::make_shared<FolderLock>(job.config.work / "lock", [&](const std::string& line) { job.log.warn(line); });
  });
  job.ranks.on_all([&] { job.log.open_file(job.config.work); });
  if (job.line.fresh) remove_work(job);
}

void check_budget(const Job& job) {
  job.ranks.on_root([&] {
    const int64_t K = job.experts_kept(), E = job.model.experts, k = job.model.routing.top_k;
    const std::string found =
        job.config.source.string() + ": compression.experts keeps " + std::to_string(K) + " of " + std::to_string(E) + " experts a layer";
    if (K > E)
      throw UserError(found + ", which is more than there are", "give a number from " + std::to_string(k) + " to " + std::to_string(E));
    if (K < k) {
      throw UserError(found + ", but the model's router sends every token to " + std::to_string(k) + " experts (top-k)",
                      "give a number from " + std::to_string(k) + " to " + std::to_string(E));
    }
  });
}

void check_output(const Job& job, int64_t experts_kept) {
  job.ranks.on_root([&] {
    const auto layout = output_layout(job.checkpoint, job.model, experts_kept, job.config.output_files.max_shard_bytes);
    check_output_folder(job.checkpoint, layout, job.config.output);
    uint64_t merged = 0;
    for (const OutputFile& file : layout) {
      for (const OutputTensor& tensor : file.tensors) merged += tensor.from_shard ? tensor.info.bytes() : 0;
    }
    merged -= std::min(merged, bytes_in(job.config.work / "shards"));
    const uint64_t free = free_bytes(std::filesystem::absolute(job.config.work));
    if (free < merged) {
      throw UserError("work folder " + job.config.work.string() + " needs " + format_bytes(static_cast<double>(merged)) +
                          " for merged shards, its disk has " + format_bytes(static_cast<double>(free)) + " free",
                      "free some, or name a folder on another disk in `work`");
    }
  });
}

void write_output(Job& job, int64_t experts_kept) {
  job.summary.read = files_read(job.checkpoint, job.ranks);
  job.summary.stage("assembly", [&] {
    // The bar shows rank 0's files.
    const auto layout = output_layout(job.checkpoint, job.model, experts_kept, job.config.output_files.max_shard_bytes);
    uint64_t bytes = 0;
    for (size_t i = 0; i < layout.size(); i += static_cast<size_t>(job.ranks.size())) bytes += layout[i].bytes;
    Progress progress(job.log, "assembly", static_cast<int64_t>(bytes), "B", "B");
    const AssemblySummary done = assemble(job.ranks, job.checkpoint, job.model, experts_kept, job.config.output_files.max_shard_bytes,
                                          job.config.work, job.config.output,
                                          {.job = job.identity,
                                           .progress =
                                               [&](uint64_t n) {
                                                 progress.step(static_cast<int64_t>(n));
                                                 progress.add_detail(static_cast<double>(n));
                                               },
                                           .after_round = [&] { leave_if_asked(job, "the files of the output that are finished stay"); },
                                           .trace = job.trace});
    if (done.found > 0) {
      job.log.info(std::to_string(done.found) + " of " + std::to_string(done.files) + " files of the output had been written before");
    }
    job.summary.output_bytes = done.bytes;
    job.summary.checksums = done.checksums;
    job.summary.left_out = done.left_out;
    job.summary.output = job.config.output.string();
    job.summary.experts_kept = experts_kept;
  });
}

}  // namespace hcsmoe
