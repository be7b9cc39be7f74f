// After the last layer: final norm and output matrix. The vocabulary is walked in chunks, so that neither the float32 output matrix nor the
// logits of all tokens are ever in memory.

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "forward/state.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

constexpr int64_t vocabulary_chunk = 4096;

}  // namespace

void LayerSweep::State::for_each_logits(const std::function<void(int64_t row, int64_t first, const float* logits, int64_t n)>& visit) {
  if (layer != model.layers) throw Error("logits are asked for before the last layer has run");
  const int64_t N = tokens(), D = model.hidden_size, V = model.vocabulary;
  const at::Tensor norm = weights.get_float(model.names.final_norm, "norm"), stored = checkpoint.tensor(model.names.output);  // [V, D]
  at::Tensor x = output_rows.get(padded(N, row_block), D, at::kFloat);
  for_each_task(blocks_of(N, row_block), [&](int64_t b, int) {
    at::Tensor xb = x.narrow(0, b * row_block, row_block);
    norm_rows(b * row_block, std::min(row_block, N - b * row_block), norm, xb, nullptr);
  });
  Buffer converted;
  for (int64_t first = 0; first < V; first += vocabulary_chunk) {
    const int64_t n = std::min(vocabulary_chunk, V - first);
    at::Tensor w = stored.narrow(0, first, n);
    if (w.scalar_type() != at::kFloat) w = converted.get(n, D, at::kFloat).copy_(w);
    for_each_task(blocks_of(N, row_block), [&](int64_t b, int thread) {
      at::Tensor z = thread_logits[static_cast<size_t>(thread)].get(row_block, n, at::kFloat);
      block_product(x.narrow(0, b * row_block, row_block), w, z);
      const int64_t end = std::min(row_block, N - b * row_block);
      for (int64_t r = 0; r < end; ++r) visit(b * row_block + r, first, const_data<float>(z) + r * n, n);
    });
  }
  checkpoint.done_with(model.names.output);
  figures.operations += 2.0 * static_cast<double>(N) * static_cast<double>(D) * static_cast<double>(V);
}

std::vector<at::Tensor> LayerSweep::logits() {
  State& state = *state_;
  const int64_t V = state.model.vocabulary;
  at::Tensor all = at::empty({state.tokens(), V}, at::TensorOptions().dtype(at::kFloat));
  state.for_each_logits(
      [&](int64_t row, int64_t first, const float* z, int64_t n) { std::copy(z, z + n, data<float>(all) + row * V + first); });
  std::vector<at::Tensor> result;
  for (size_t s = 0; s < state.sequences.size(); ++s) result.push_back(all.narrow(0, state.first_row[s], state.sequences[s].numel()));
  return result;
}

std::vector<double> LayerSweep::negative_log_likelihoods() {
  State& state = *state_;
  struct Running {  // log sum exp so far = highest + log(sum)
    double highest = -INFINITY, sum = 0, target = 0;
    int32_t next = -1;  // the token that follows
  };
  std::vector<Running> rows(static_cast<size_t>(state.tokens()));
  for (size_t s = 0; s < state.sequences.size(); ++s) {
    const auto* ids = const_data<int32_t>(state.sequences[s]);
    for (int64_t t = 0; t + 1 < state.sequences[s].numel(); ++t) rows[static_cast<size_t>(state.first_row[s] + t)].next = ids[t + 1];
  }
  state.for_each_logits([&](int64_t row, int64_t first, const float* z, int64_t n) {
    Running& run = rows[static_cast<size_t>(row)];
    if (run.next < 0) return;
    const auto highest = static_cast<double>(*std::max_element(z, z + n));
    if (highest > run.highest) {
      run.sum *= std::exp(run.highest - highest);
      run.highest = highest;
    }
    for (int64_t i = 0; i < n; ++i) run.sum += std::exp(static_cast<double>(z[i]) - run.highest);
    if (run.next >= first && run.next < first + n) run.target = static_cast<double>(z[run.next - first]);
  });
  std::vector<double> result;
  for (size_t s = 0; s < state.sequences.size(); ++s) {
    double sum = 0;
    for (int64_t r = state.first_row[s]; r < state.first_row[s + 1]; ++r) {
      const Running& run = rows[static_cast<size_t>(r)];
      if (run.next >= 0) sum += run.highest + std::log(run.sum) - run.target;
    }
    result.push_back(sum);
  }
  return result;
}

}  // namespace hcsmoe
