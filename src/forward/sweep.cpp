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

std::vector<std::vector<std::string>> names_of_layers(const ModelDescription& model) {
  std::vector<std::vector<std::string>> names;
  for (int64_t layer = 0; layer < model.layers; ++layer) names.push_back(layer_tensor_names(model, layer));
  return names;
}

}  // namespace

LayerSweep::State::State(const Checkpoint& checkpoint_, const ModelDescription& model_, const Compute& compute_,
                         std::vector<at::Tensor> sequences_, std::unique_ptr<WeightStream> stream_)
    : checkpoint(checkpoint_),
      model(model_),
      compute(compute_),
      kernels(*compute_.kernels),
      sequences(std::move(sequences_)),
      first_row{0},
      stream(std::move(stream_)),
      weights(*stream, compute_.dtype, compute_.device, compute_.trace),
      thread_gate(static_cast<size_t>(compute_.threads)),
      thread_up(static_cast<size_t>(compute_.threads)),
      thread_out(static_cast<size_t>(compute_.threads)),
      thread_logits(static_cast<size_t>(compute_.threads)) {
  for (const at::Tensor& ids : sequences) first_row.push_back(first_row.back() + ids.numel());
}

void LayerSweep::State::embed() {
  const Span span(compute.trace, Activity::computing, "embedding");
  const int64_t D = model.hidden_size;
  at::Tensor rows = at::empty({tokens(), D}, at::kFloat);             // only these go to the device, not the table
  const at::Tensor table = checkpoint.tensor(model.names.embedding);  // [V, D]
  for (size_t s = 0; s < sequences.size(); ++s) {
    const auto* ids = const_data<int32_t>(sequences[s]);
    for (int64_t t = 0; t < sequences[s].numel(); ++t) {
      if (ids[t] < 0 || ids[t] >= model.vocabulary) throw Error("token id " + std::to_string(ids[t]) + " is outside the vocabulary");
      if (table.scalar_type() == at::kBFloat16) {
        to_float(const_data<uint16_t>(table) + ids[t] * D, D, data<float>(rows) + (first_row[s] + t) * D);
      } else {
        rows[first_row[s] + t].copy_(table[ids[t]]);
      }
    }
  }
  hidden = rows.to(compute.device);
  if (model.names.embedding != model.names.output) checkpoint.done_with(model.names.embedding);
}

void LayerSweep::State::for_each_block(const std::function<void(int64_t, int64_t, int)>& work) const {
  kernels.for_each_task(blocks_of(tokens(), compute.row_block), [&](int64_t b, int thread) {
    const int64_t begin = b * compute.row_block;
    work(begin, std::min(compute.row_block, tokens() - begin), thread);
  });
}

std::unique_ptr<WeightStream> layer_weights(const Checkpoint& checkpoint, const ModelDescription& model, const Compute& compute,
                                            const Ranks& ranks, int64_t first_layer) {
  StreamOptions options;
  options.read_ahead = compute.read_ahead;
  options.first_layer = first_layer;
  options.limit = ranks.wait_limit();
  options.trace = compute.trace;
  return stream_weights(checkpoint, names_of_layers(model), ranks, options);
}

LayerSweep::LayerSweep(const Checkpoint& checkpoint, const ModelDescription& model, const Compute& compute,
                       std::vector<at::Tensor> sequences, std::unique_ptr<WeightStream> weights, const SweepStart& start)
    : state_(std::make_unique<State>(checkpoint, model, compute, std::move(sequences),
                                     weights ? std::move(weights) : stream_weights(checkpoint, names_of_layers(model)))) {
  if (start.layer == 0) {
    state_->embed();
    return;
  }
  if (start.hidden.size(0) != tokens()) throw Error("a sweep begins with rows of other tokens");
  state_->hidden = start.hidden.to(compute.device, /*non_blocking=*/false, /*copy=*/true);
  state_->layer = start.layer;
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
  {
    const Span span(state.compute.trace, Activity::reading, "wait for the weights", state.layer);
    state.stream->begin_layer(state.layer);
  }
  SweepFigures& figures = state.figures;
  Stopwatch watch;
  {
    const Span span(state.compute.trace, Activity::computing, "attention", state.layer);
    state.model.latent ? state.latent_attention() : state.attention();
  }
  figures.attention_seconds += watch.seconds();
  const bool moe = state.model.layer[static_cast<size_t>(state.layer)].moe;
  const Span span(state.compute.trace, Activity::computing, moe ? "shared expert" : "dense block", state.layer);
  if (!moe) return state.dense_block();
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
    const Span span(state.compute.trace, Activity::computing, "routed experts", state.layer);
    state.routed_experts(statistics, instead);
    figures.block_operations += figures.operations - before;
    figures.block_seconds += watch.seconds();
  }
  state.checkpoint.require_unchanged(layer_tensor_names(state.model, state.layer));
  state.begun = false;
  ++state.layer;
}

}  // namespace hcsmoe
