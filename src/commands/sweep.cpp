// The calibration pass: ids, the sweep over layers, and the statistics it leaves.

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "commands/job.h"
#include "commands/resumption.h"
#include "hcsmoe/calibration.h"
#include "hcsmoe/device_link.h"
#include "hcsmoe/error.h"
#include "hcsmoe/sample.h"
#include "statistics/accumulator.h"
#include "support/files.h"

namespace hcsmoe {

at::Tensor prepare_calibration(Job& job, const Compute& compute) {
  at::Tensor ids;
  job.summary.stage("calibration", [&] {
    const Span span(job.trace, Activity::reading, "calibration text");
    job.ranks.on_root([&] { ids = calibration_ids(job.config.calibration, job.config.model, job.model.vocabulary).contiguous(); });
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

void save_calibration(const Job& job, const at::Tensor& ids) {
  job.ranks.on_root([&] { write_npy(job.config.work / "calibration.npy", ids); });
}

namespace {

constexpr StatisticSet of_samples = {Statistic::sample_input, Statistic::token_output_gram, Statistic::output_cka};

/// What the work folder holds for these calibration ids.
struct Found {
  bool every_layer = true;                        // has valid statistics
  StatisticSet everywhere = StatisticSet::all();  // optional ones that every layer has
  StatisticSet somewhere;                         // and that some layer has
};

/// Statistics that must not be replaced without being asked to: a pass over the model may have taken days.
struct OtherOrigin : UserError {
  using UserError::UserError;
};

Found statistics_found(const Job& job) {
  const CalibrationConfig& calibration = job.config.calibration;
  const int64_t sample = std::min(calibration.sample, calibration.sequences * calibration.length);
  Found found;
  for (const int64_t layer : job.model.moe_layers()) {
    const auto file = statistics_file(job.config.work, layer);
    if (!std::filesystem::exists(file)) {
      found.every_layer = false;
      continue;
    }
    try {
      StatisticsOrigin origin;
      const ExpertStatistics statistics = load_statistics(file, &origin);
      if (!(origin == job.summary.origin)) {
        const StatisticsOrigin& now = job.summary.origin;
        const std::string what = origin.checkpoint != now.checkpoint ? "another checkpoint"
                                 : origin.calibration != now.calibration
                                     ? "other calibration tokens (files, sequences, length, seed, add_bos)"
                                     : "another type of computation (" + origin.dtype + ")";
        throw OtherOrigin(file.string() + ": these statistics were collected with " + what,
                          "name another folder in `work`, set it back, or collect them again with --fresh");
      }
      StatisticSet there = collected(statistics);
      found.somewhere |= there;
      if (statistics.sample_input.defined() && statistics.sample_input.size(0) != sample) there = there.without(of_samples);
      found.everywhere = found.everywhere.without(StatisticSet::all().without(there));
    } catch (const OtherOrigin&) {
      throw;
    } catch (const UserError& error) {
      job.log.warn(std::string(error.what()) + "; collecting anew");
      found.every_layer = false;
    }
  }
  return found;
}

}  // namespace

std::optional<StatisticSet> statistics_to_collect(const Job& job, StatisticSet needed) {
  int64_t answer = 0;  // -1: nothing
  job.ranks.on_root([&] {
    const Found found = statistics_found(job);
    const StatisticSet missing = needed.without(found.everywhere);
    if (found.every_layer && !missing.empty()) {
      job.log.info("the statistics in " + job.config.work.string() + " have no " + missing.names() + " as configured: collecting anew");
    }
    needed |= found.somewhere;  // nothing that was there is lost
    answer = found.every_layer && missing.empty() ? -1 : static_cast<int64_t>(needed.bits());
  });
  std::string bytes(reinterpret_cast<const char*>(&answer), sizeof answer);
  job.ranks.broadcast(bytes, 0);
  std::memcpy(&answer, bytes.data(), sizeof answer);
  if (answer < 0) return std::nullopt;
  return StatisticSet::of_bits(static_cast<unsigned>(answer));
}

void sweep(Job& job, const Compute& compute, const at::Tensor& ids, const std::optional<StatisticSet>& wanted, Resumption& resumption,
           const std::function<void(const LayerPass&)>& after_layer, const std::function<at::Tensor(int64_t layer)>& compressed) {
  const SequenceShare& share = resumption.share();
  job.summary.sweep_tokens = ids.numel();
  if (job.ranks.device()) {
    job.ranks.on_all(
        [&] { check_fits(device_sizes(job, compute), static_cast<double>(job.ranks.device()->memory_bytes()), job.ranks.size()); });
  }
  const auto start = std::chrono::steady_clock::now();
  job.summary.stage("sweep", [&] {
    SweepStart begin = resumption.take_original();
    LayerSweep layers(job.checkpoint, job.model, compute, resumption.sequences(ids),
                      layer_weights(job.checkpoint, job.model, compute, job.ranks, begin.layer), begin);
    begin.hidden.reset();
    std::optional<StatisticsAccumulator> sums;
    if (wanted) sums.emplace(job.model.experts, wanted->has(Statistic::output_sum) ? job.model.expert_intermediate : 0, compute.device);
    const std::vector<int64_t> sampled = sampled_tokens(ids.numel(), job.config.calibration.sample);
    const bool samples = wanted && wanted->without(of_samples) != *wanted;
    int64_t moe_layer = 0;
    for (const int64_t before : job.model.moe_layers()) moe_layer += before < layers.next_layer();
    Progress progress(job.log, "sweep", job.model.layers - layers.next_layer(), "layers", "tokens");
    while (layers.next_layer() < job.model.layers) {
      const int64_t layer = layers.next_layer();
      if (!job.model.layer[static_cast<size_t>(layer)].moe) {
        layers.run_layer();
      } else {
        ExpertStatistics statistics;
        statistics.layer = layer;
        layers.begin_layer();
        if (wanted) {
          sums->clear();
          if (samples) {
            const Span span(job.trace, Activity::reducing, "sampled tokens", layer);
            statistics.sample_input = gather_sample(layers.block_input(), share.groups.first_token, sampled, job.ranks);
          }
          {
            const Span span(job.trace, Activity::computing, "statistics of the sample and the weights", layer);
            collect_sample_statistics(statistics, *wanted, job.checkpoint, job.model, compute, job.ranks);
            collect_weight_statistics(statistics, *wanted, job.checkpoint, job.model, job.ranks);
          }
          layers.finish_layer(&*sums);
          {
            const Span span(job.trace, Activity::reducing, "sums", layer);
            sums->all_reduce(job.ranks);
          }
          const Span span(job.trace, Activity::computing, "output sums", layer);
          statistics = finish_statistics(*sums, std::move(statistics), job.checkpoint, job.model, job.ranks);
        } else {
          layers.finish_layer();
        }
        after_layer({moe_layer++, statistics, layers, share, ids});
      }
      progress.step();
      progress.add_detail(static_cast<double>(ids.numel()) / static_cast<double>(job.model.layers));
      resumption.after_layer(layer, layers.hidden(), [&] { return compressed(layer); });
    }
    job.summary.figures = layers.figures();
  });
  job.summary.sweep_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace hcsmoe
