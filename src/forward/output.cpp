// After the last layer: final norm and output matrix. The vocabulary is walked in chunks, so that neither the float32 output matrix nor the
// logits of all tokens are ever in memory.

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <numeric>

#include "forward/state.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

constexpr int64_t vocabulary_chunk = 4096;

}  // namespace

FinalRows LayerSweep::final_rows(const std::vector<int64_t>& rows) const {
  State& state = *state_;
  if (state.layer != state.model.layers) throw Error("the final rows are asked for before the last layer has run");
  const auto count = static_cast<int64_t>(rows.size()), D = state.model.hidden_size;
  const at::Tensor norm = state.weights.get_float(state.model.names.final_norm, "norm");
  const Compute& compute = state.compute;
  const int64_t block_size = compute.row_block;
  const at::Tensor asked = at::tensor(at::ArrayRef<int64_t>(rows), at::kLong).to(compute.device);
  FinalRows result{at::empty({padded(count, block_size), D}, compute.type(at::kFloat)), count, &state.checkpoint, &state.model};
  state.kernels.for_each_task(blocks_of(count, block_size), [&](int64_t b, int) {
    const int64_t begin = b * block_size, n = std::min(block_size, count - begin);
    const at::Tensor residual = at::empty({n, D}, compute.type(at::kFloat));
    state.kernels.gather_rows(state.hidden, asked.narrow(0, begin, n), 0, residual);
    at::Tensor out = result.rows.narrow(0, begin, block_size);
    state.kernels.rms_norm(residual, norm, state.model.norm_epsilon, out);
  });
  return result;
}

void for_each_logits(const std::vector<const FinalRows*>& models, const Compute& compute,
                     const std::function<void(const LogitsBlock&)>& visit) {
  const int64_t N = models.front()->count, V = models.front()->model->vocabulary, block_size = compute.row_block;
  const size_t M = models.size();
  const Span span(compute.trace, Activity::computing, "logits");
  for (const FinalRows* model : models) {
    if (model->count != N || model->model->vocabulary != V) throw Error("logits of models with other rows or another vocabulary");
  }
  std::vector<Weights> weights;
  for (const FinalRows* model : models) weights.emplace_back(*model->checkpoint, at::kFloat, compute.device);
  std::vector<Buffer> thread_logits(M * static_cast<size_t>(compute.threads));
  std::vector<at::Tensor> output(M);
  for (int64_t first = 0; first < V && N > 0; first += vocabulary_chunk) {
    const int64_t n = std::min(vocabulary_chunk, V - first);
    for (size_t m = 0; m < M; ++m) {
      output[m] =
          weights[m].convert(models[m]->checkpoint->tensor(models[m]->model->names.output).narrow(0, first, n), "output");  // of [V, D]
    }
    compute.kernels->for_each_task(blocks_of(N, block_size), [&](int64_t b, int thread) {
      std::vector<at::Tensor> z(M);
      for (size_t m = 0; m < M; ++m) {
        z[m] = thread_logits[static_cast<size_t>(thread) * M + m].get(block_size, n, compute.type(at::kFloat));
        block_product(models[m]->rows.narrow(0, b * block_size, block_size), output[m], z[m]);
      }
      visit({b * block_size, std::min(block_size, N - b * block_size), first, n, z});
    });
  }
  for (const FinalRows* model : models) model->checkpoint->done_with(model->model->names.output);
}

std::vector<at::Tensor> LayerSweep::logits() const {
  const State& state = *state_;
  std::vector<int64_t> rows(static_cast<size_t>(state.tokens()));
  std::iota(rows.begin(), rows.end(), int64_t{0});
  const FinalRows final = final_rows(rows);
  const at::Tensor all = at::empty({state.tokens(), state.model.vocabulary}, at::kFloat);
  for_each_logits({&final}, state.compute, [&](const LogitsBlock& block) {
    all.narrow(0, block.row, block.rows).narrow(1, block.first, block.n).copy_(block.z[0].narrow(0, 0, block.rows));
  });
  std::vector<at::Tensor> result;
  for (size_t s = 0; s < state.sequences.size(); ++s) result.push_back(all.narrow(0, state.first_row[s], state.sequences[s].numel()));
  return result;
}

}  // namespace hcsmoe
