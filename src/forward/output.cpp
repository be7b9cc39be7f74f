// After the last layer: final norm and output matrix. The vocabulary is walked in chunks, so that neither the float32 output matrix nor the
// logits of all tokens are ever in memory.

#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>

#include "forward/row_kernels.h"
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
  FinalRows result{at::empty({padded(count, row_block), D}, at::TensorOptions().dtype(at::kFloat)), count, &state.checkpoint, &state.model};
  for_each_task(blocks_of(count, row_block), [&](int64_t b, int) {
    const int64_t end = std::min(count, (b + 1) * row_block);
    for (int64_t r = b * row_block; r < end; ++r) {
      rms_norm(const_data<float>(state.hidden) + rows[static_cast<size_t>(r)] * D, const_data<float>(norm), state.model.norm_epsilon, D,
               data<float>(result.rows) + r * D);
    }
    if (end < (b + 1) * row_block) result.rows.narrow(0, end, (b + 1) * row_block - end).zero_();
  });
  return result;
}

void for_each_logits(const std::vector<const FinalRows*>& models, int threads,
                     const std::function<void(int64_t, int64_t, int64_t, const std::vector<const float*>&)>& visit) {
  const int64_t N = models.front()->count, V = models.front()->model->vocabulary;
  const size_t M = models.size();
  for (const FinalRows* model : models) {
    if (model->count != N || model->model->vocabulary != V) throw Error("logits of models with other rows or another vocabulary");
  }
  std::vector<Buffer> converted(M), thread_logits(M * static_cast<size_t>(threads));
  std::vector<at::Tensor> output(M);
  for (int64_t first = 0; first < V && N > 0; first += vocabulary_chunk) {
    const int64_t n = std::min(vocabulary_chunk, V - first);
    for (size_t m = 0; m < M; ++m) {
      output[m] = models[m]->checkpoint->tensor(models[m]->model->names.output).narrow(0, first, n);  // of [V, D]
      if (output[m].scalar_type() != at::kFloat) output[m] = converted[m].get(n, output[m].size(1), at::kFloat).copy_(output[m]);
    }
    for_each_task(blocks_of(N, row_block), [&](int64_t b, int thread) {
      std::vector<at::Tensor> z(M);
      for (size_t m = 0; m < M; ++m) {
        z[m] = thread_logits[static_cast<size_t>(thread) * M + m].get(row_block, n, at::kFloat);
        block_product(models[m]->rows.narrow(0, b * row_block, row_block), output[m], z[m]);
      }
      std::vector<const float*> logits(M);
      for (int64_t r = 0; r < std::min(row_block, N - b * row_block); ++r) {
        for (size_t m = 0; m < M; ++m) logits[m] = const_data<float>(z[m]) + r * n;
        visit(b * row_block + r, first, n, logits);
      }
    });
  }
  for (const FinalRows* model : models) model->checkpoint->done_with(model->model->names.output);
}

std::vector<at::Tensor> LayerSweep::logits() const {
  const State& state = *state_;
  const int64_t V = state.model.vocabulary;
  std::vector<int64_t> rows(static_cast<size_t>(state.tokens()));
  std::iota(rows.begin(), rows.end(), int64_t{0});
  const FinalRows final = final_rows(rows);
  at::Tensor all = at::empty({state.tokens(), V}, at::TensorOptions().dtype(at::kFloat));
  for_each_logits({&final}, state.compute.threads, [&](int64_t row, int64_t first, int64_t n, const std::vector<const float*>& z) {
    std::copy(z[0], z[0] + n, data<float>(all) + row * V + first);
  });
  std::vector<at::Tensor> result;
  for (size_t s = 0; s < state.sequences.size(); ++s) result.push_back(all.narrow(0, state.first_row[s], state.sequences[s].numel()));
  return result;
}

}  // namespace hcsmoe
