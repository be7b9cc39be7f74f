#pragma once
// What the commands share: the opened checkpoint, and the steps that several of them are made of. Every function is collective.

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>

#include "commands/summary.h"
#include "hcsmoe/checkpoint.h"
#include "hcsmoe/commands.h"
#include "hcsmoe/config.h"
#include "hcsmoe/device_memory.h"
#include "hcsmoe/evaluation.h"
#include "hcsmoe/families.h"
#include "hcsmoe/forward.h"
#include "hcsmoe/log.h"
#include "hcsmoe/merging.h"
#include "hcsmoe/plan.h"
#include "hcsmoe/ranks.h"
#include "hcsmoe/reconstruction.h"
#include "hcsmoe/shards.h"
#include "hcsmoe/stop.h"
#include "hcsmoe/trace.h"
#include "support/folder_lock.h"

namespace hcsmoe {

struct Job {
  const CommandLine& line;
  const Config& config;
  const Ranks& ranks;
  Log& log;
  Trace* trace;  // null: nobody asked
  StopRequest& stop;
  Checkpoint checkpoint;
  ModelDescription model;
  Summary summary;
  std::shared_ptr<FolderLock> lock = {};  // of WORK, on rank 0
  std::string identity = {};              // of what is asked (begin_job)
  std::string result = {};  // on rank 0: the command's JSON document for --json, where it is not run.json's or evaluation.json's
  bool summarised = false;  // run.json is of this call

  int64_t experts_kept() const { return config.compression.experts.resolve(model.experts); }
};

/// Opens and describes the checkpoint on every rank (rank 0 first, whose message is the one printed) and fingerprints it.
Job open_job(const CommandLine&, const Config&, const Ranks&, Log&, Trace*, StopRequest&);
/// Those of rank 0, on every rank. Collective.
std::vector<std::string> texts_of_root(const Ranks&, const std::vector<std::string>&);
/// What the configuration asks for, with the job's trace.
Compute choose_compute(const Job&);
/// Creates WORK, locks it against other runs and starts the log file there. With --fresh, what earlier runs left is removed. UserError:
/// another run works there.
void open_work(Job&);
/// UserError unless top-k <= K <= E.
void check_budget(const Job&);
/// UserError if the output exists, or its disk and the work folder's cannot hold what will be written.
void check_output(const Job&, int64_t experts_kept);

/// The calibration ids, on every rank: made on rank 0. Sets the origin of the statistics. int32 [S, T]
at::Tensor prepare_calibration(Job&, const Compute&);
/// Writes WORK/calibration.npy, when nothing that is there speaks against these ids. Collective.
void save_calibration(const Job&, const at::Tensor& ids);
/// Nothing if WORK holds valid statistics of this origin for every MoE layer, and with them all that are needed. Else what to collect: what
/// is needed, and what WORK holds already.
std::optional<StatisticSet> statistics_to_collect(const Job&, StatisticSet needed);
/// A MoE layer of a sweep that has just run.
struct LayerPass {
  int64_t moe_layer = 0;               // its number among the MoE layers
  const ExpertStatistics& statistics;  // on rank 0, if they are collected; sample_input on every rank
  const LayerSweep& layers;            // block_input() and routed_output() are this layer's
  const SequenceShare& share;          // of the calibration sequences, this rank's
  const at::Tensor& ids;               // int32 [S, T], of all ranks
};
class Resumption;
/// One pass of all layers over the calibration ids, from where the resumption says. after_layer is called on every rank after each MoE
/// layer; compressed(layer): the residual stream through the compressed layers after this one; undefined where it is the same, or there is
/// none. Without a set no statistics are collected. UserError: it does not fit the GPU of a rank.
void sweep(Job&, const Compute&, const at::Tensor& ids, const std::optional<StatisticSet>&, Resumption&,
           const std::function<void(const LayerPass&)>& after_layer, const std::function<at::Tensor(int64_t layer)>& compressed);

/// What this run holds on a GPU.
DeviceSizes device_sizes(const Job&, const Compute&);
/// Says what is worked on, and with what.
void describe(const Job&, const Compute&);
/// Reads a plan and checks that it fits the model; on every rank.
Plan read_plan(Job&, const std::filesystem::path& file);
/// UserError if no checkpoint can hold what the recipe makes.
void check_exportable(const Job&, const Recipe&);
/// Plans every MoE layer from the statistics in WORK; on every rank. Fills in the origin from them.
Plan plan_from_statistics(Job&);
/// The layer's sample_input of the statistics in WORK, on every rank. float32 [S, D]. UserError: there is none.
at::Tensor sampled_input(const Job&, int64_t layer, Merge);
/// align_layer of every layer of the plan, on the tokens sampled in WORK; empty where its merge does not align. On every rank.
std::vector<LayerUnits> align_plan(const Job&, const Plan&);
/// Shards and untouched tensors to OUTPUT.
void write_output(Job&, int64_t experts_kept);
/// Where evaluation is configured: measures the original and the output together.
void evaluate_before_and_after(Job&, const Compute&);
/// OUTPUT/README.md and the plan beside it, and their checksums. What goes wrong is a warning: the output is complete.
void write_card(Job&, const std::filesystem::path& plan_file);
/// WORK/report.html and OUTPUT/report.html, from the plan and run.json. What goes wrong is a warning: the output is complete.
void write_report(const Job&, const std::filesystem::path& plan_file);

// The commands.
void run(Job&);
void collect(Job&);
void plan(Job&);
void apply(Job&);
void inspect(Job&);
void evaluate(Job&);
void report(Job&);
/// Opens the original itself: where it is, the configuration may not say.
void verify(const CommandLine&, const Config&, const Ranks&, Log&, Trace*, StopRequest&);

}  // namespace hcsmoe
