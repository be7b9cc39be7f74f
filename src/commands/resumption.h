#pragma once
// A sweep that can be ended at any moment and goes on from the last layer it had finished, on any number of ranks: streams and records of
// the layers are saved in the background while the next layer is computed (include/hcsmoe/resume.h). Collective.

#include <chrono>
#include <functional>
#include <future>
#include <optional>
#include <vector>

#include "commands/background.h"
#include "commands/job.h"

namespace hcsmoe {

/// What became of a MoE layer.
struct LayerRecord {
  LayerPlan plan;
  std::optional<ReconstructionReport> report;  // of a recipe that fits
};

class Resumption {
 public:
  /// Finds what there is to go on from. records: each MoE layer is recorded.
  Resumption(Job&, const at::Tensor& ids, bool records, Background&);

  const SequenceShare& share() const { return share_; }
  /// This rank's sequences. int32 [T] each.
  std::vector<at::Tensor> sequences(const at::Tensor& ids) const;
  /// Where the sweep of the original model begins, and that through the compressed layers, if there is one.
  SweepStart take_original() { return std::move(original_); }
  SweepStart take_compressed() { return std::move(compressed_); }
  /// Of the MoE layers before.
  const std::vector<LayerRecord>& records() const { return records_; }

  /// Saved by rank 0.
  void record(const LayerRecord&);
  /// After each layer: hidden and compressed() are the streams on the device. Throws, on all ranks together, if any was asked to stop.
  void after_layer(int64_t layer, const at::Tensor& hidden, const std::function<at::Tensor()>& compressed);

 private:
  void wait_for_previous();

  Job& job_;
  Background& background_;
  const SequenceShare share_;
  const int64_t first_token_;
  SweepStart original_, compressed_;
  std::vector<LayerRecord> records_;
  int64_t saved_layer_ = -1;  // the last that was handed to the background
  std::future<void> saved_;
  std::chrono::steady_clock::time_point last_save_ = std::chrono::steady_clock::now();
};

/// What is recorded of the MoE layers in WORK, up to the first that is not. On rank 0.
std::vector<LayerRecord> recorded_layers(const Job&);
/// Throws, on all ranks together, if any was asked to stop. `done`: what is saved.
void leave_if_asked(const Job&, const std::string& done);

}  // namespace hcsmoe
