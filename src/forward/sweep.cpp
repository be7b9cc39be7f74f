#include <ATen/ops/empty.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "forward/row_kernels.h"
#include "forward/state.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

/// Seconds since it was made or last asked.
struct Stopwatch {
  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
  double seconds() {
    const auto before = std::exchange(start, std::chrono::steady_clock::now());
    return std::chrono::duration<double>(start - before).count();
  }
};

}  // namespace

LayerSweep::State::State(const Checkpoint& checkpoint_, const ModelDescription& model_, const Compute& compute_,
                         std::vector<at::Tensor> sequences_)
    : checkpoint(checkpoint_),
      model(model_),
      compute(compute_),
      sequences(std::move(sequences_)),
      first_row{0},
      weights(checkpoint_, compute_.dtype),
      thread_float(static_cast<size_t>(compute_.threads)),
      thread_gate(static_cast<size_t>(compute_.threads)),
      thread_up(static_cast<size_t>(compute_.threads)),
      thread_out(static_cast<size_t>(compute_.threads)),
      thread_logits(static_cast<size_t>(compute_.threads)) {
  for (const at::Tensor& ids : sequences) first_row.push_back(first_row.back() + ids.numel());
}

void LayerSweep::State::embed() {
  const int64_t D = model.hidden_size;
  hidden = at::empty({tokens(), D}, at::TensorOptions().dtype(at::kFloat));
  const at::Tensor table = checkpoint.tensor(model.names.embedding);  // [V, D]
  for (size_t s = 0; s < sequences.size(); ++s) {
    const auto* ids = const_data<int32_t>(sequences[s]);
    for (int64_t t = 0; t < sequences[s].numel(); ++t) {
      if (ids[t] < 0 || ids[t] >= model.vocabulary) throw Error("token id " + std::to_string(ids[t]) + " is outside the vocabulary");
      float* row = data<float>(hidden) + (first_row[s] + t) * D;
      if (table.scalar_type() == at::kBFloat16) {
        to_float(const_data<uint16_t>(table) + ids[t] * D, D, row);
      } else {
        hidden[first_row[s] + t].copy_(table[ids[t]]);
      }
    }
  }
  if (model.names.embedding != model.names.output) checkpoint.done_with(model.names.embedding);
}

void LayerSweep::State::norm_rows(int64_t first, int64_t n, const at::Tensor& weight_row, at::Tensor& out, float* scratch) const {
  const int64_t D = model.hidden_size;
  const auto* w = const_data<float>(weight_row);
  for (int64_t r = 0; r < n; ++r) {
    const float* x = const_data<float>(hidden) + (first + r) * D;
    if (out.scalar_type() == at::kFloat) {
      rms_norm(x, w, model.norm_epsilon, D, data<float>(out) + r * D);
    } else {
      rms_norm(x, w, model.norm_epsilon, D, scratch);
      to_bfloat16(scratch, D, data<uint16_t>(out) + r * D);
    }
  }
  if (n < out.size(0)) out.narrow(0, n, out.size(0) - n).zero_();
}

LayerSweep::LayerSweep(const Checkpoint& checkpoint, const ModelDescription& model, const Compute& compute,
                       std::vector<at::Tensor> sequences)
    : state_(std::make_unique<State>(checkpoint, model, compute, std::move(sequences))) {
  for (const std::string& name : layer_tensor_names(model, 0)) checkpoint.will_need(name);
  state_->embed();
}

LayerSweep::~LayerSweep() = default;
int64_t LayerSweep::next_layer() const { return state_->layer; }
int64_t LayerSweep::tokens() const { return state_->tokens(); }
const SweepFigures& LayerSweep::figures() const { return state_->figures; }

at::Tensor LayerSweep::block_input() const { return state_->block_rows.narrow(0, 0, tokens()); }
at::Tensor LayerSweep::routed_output() const { return state_->block_output; }
at::Tensor LayerSweep::hidden() const { return state_->hidden; }

void LayerSweep::run_layer(StatisticsAccumulator* statistics, const SparseBlock* instead) {
  begin_layer();
  finish_layer(statistics, instead);
}

void LayerSweep::begin_layer() {
  State& state = *state_;
  if (state.begun) throw Error("layer " + std::to_string(state.layer) + " has begun already");
  state.begun = true;
  if (state.layer + 1 < state.model.layers) {
    for (const std::string& name : layer_tensor_names(state.model, state.layer + 1)) state.checkpoint.will_need(name);
  }
  SweepFigures& figures = state.figures;
  Stopwatch watch;
  state.model.latent ? state.latent_attention() : state.attention();
  figures.attention_seconds += watch.seconds();
  if (!state.model.layer[static_cast<size_t>(state.layer)].moe) return state.dense_block();
  const double before = figures.operations;
  state.sparse_input();
  state.shared_expert();
  figures.block_operations += figures.operations - before;
  figures.block_seconds += watch.seconds();
}

void LayerSweep::finish_layer(StatisticsAccumulator* statistics, const SparseBlock* instead) {
  State& state = *state_;
  if (!state.begun) throw Error("layer " + std::to_string(state.layer) + " has not begun");
  if (statistics && instead) throw Error("statistics are of the checkpoint's own block");
  if (state.model.layer[static_cast<size_t>(state.layer)].moe) {
    SweepFigures& figures = state.figures;
    const double before = figures.operations;
    Stopwatch watch;
    state.routed_experts(statistics, instead);
    figures.block_operations += figures.operations - before;
    figures.block_seconds += watch.seconds();
  }
  for (const std::string& name : layer_tensor_names(state.model, state.layer)) state.checkpoint.done_with(name);
  state.begun = false;
  ++state.layer;
}

}  // namespace hcsmoe
