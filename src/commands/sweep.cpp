// The calibration pass: ids, the sweep over layers, and the statistics it leaves.

#include <ATen/ops/empty.h>

#include <cstring>

#include "commands/job.h"
#include "hcsmoe/calibration.h"
#include "hcsmoe/error.h"
#include "statistics/accumulator.h"
#include "support/files.h"

namespace hcsmoe {

at::Tensor prepare_calibration(Job& job, const Compute& compute) {
  at::Tensor ids;
  job.summary.stage("calibration", [&] {
    const auto file = job.config.work / "calibration.npy";
    job.ranks.on_root([&] {
      write_npy(file, calibration_ids(job.config.calibration, job.config.model, job.model.vocabulary));
      ids = read_npy(file);
    });
    std::string bytes;
    if (job.ranks.is_root()) bytes.assign(static_cast<const char*>(ids.const_data_ptr()), ids.nbytes());
    job.ranks.broadcast(bytes, 0);
    if (!job.ranks.is_root()) {
      ids = at::empty({job.config.calibration.sequences, job.config.calibration.length}, at::TensorOptions().dtype(at::kInt));
      if (bytes.size() != ids.nbytes()) throw Error("rank 0 sent calibration ids of another size than the configuration says");
      std::memcpy(ids.mutable_data_ptr(), bytes.data(), bytes.size());
    }
  });
  job.summary.origin.calibration = ids_fingerprint(ids);
  job.summary.origin.dtype = dtype_name(compute);
  job.summary.dtype = dtype_name(compute);
  job.summary.threads = compute.threads;
  return ids;
}

bool statistics_are_valid(const Job& job) {
  int64_t valid = 1;
  if (job.ranks.is_root()) {
    for (const int64_t layer : job.model.moe_layers()) {
      const auto file = statistics_file(job.config.work, layer);
      try {
        StatisticsOrigin origin;
        if (!std::filesystem::exists(file)) {
          valid = 0;
        } else if (load_statistics(file, &origin); !(origin == job.summary.origin)) {
          job.log.info("statistics in " + file.parent_path().string() +
                       " are of another checkpoint, calibration text or type: collecting anew");
          valid = 0;
        }
      } catch (const UserError& error) {
        job.log.warn(std::string(error.what()) + "; collecting anew");
        valid = 0;
      }
      if (valid == 0) break;
    }
  }
  return job.ranks.all_reduce_max(job.ranks.is_root() ? valid : 0) == 1;
}

void sweep(Job& job, const Compute& compute, const at::Tensor& ids, const std::function<void(const ExpertStatistics&)>& after_layer) {
  const Share share = share_of(ids.size(0), job.ranks);
  std::vector<at::Tensor> sequences;
  for (int64_t s = 0; s < share.number; ++s) sequences.push_back(ids[share.first + s]);
  job.summary.sweep_tokens = ids.numel();
  const auto start = std::chrono::steady_clock::now();
  job.summary.stage("sweep", [&] {
    LayerSweep layers(job.checkpoint, job.model, compute, std::move(sequences));
    StatisticsAccumulator sums(job.model.experts, job.model.expert_intermediate);
    Progress progress(job.log, "sweep", job.model.layers, "layers", "tokens");
    while (layers.next_layer() < job.model.layers) {
      const int64_t layer = layers.next_layer();
      if (!job.model.layer[static_cast<size_t>(layer)].moe) {
        layers.run_layer();
      } else {
        sums.clear();
        layers.run_layer(&sums);
        sums.all_reduce(job.ranks);
        after_layer(finish_statistics(sums, job.checkpoint, job.model, layer, job.ranks));
      }
      progress.step();
      progress.add_detail(static_cast<double>(ids.numel()) / static_cast<double>(job.model.layers));
    }
    job.summary.figures = layers.figures();
  });
  job.summary.sweep_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace hcsmoe
