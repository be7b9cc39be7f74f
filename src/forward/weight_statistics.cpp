// Statistics of the experts' weights alone.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "forward/gram.h"
#include "forward/products.h"
#include "hcsmoe/sample.h"

namespace hcsmoe {
namespace {

constexpr int64_t row_step = 64;                  // a panel is a multiple of it
constexpr int64_t most_bytes = int64_t{1} << 28;  // of a panel

/// The weights of all experts in one part, as the checkpoint has them.
std::vector<at::Tensor> part_of_all(const Checkpoint& checkpoint, const ModelDescription& model, int64_t layer, ExpertPart part) {
  std::vector<at::Tensor> tensors;
  for (int64_t e = 0; e < model.experts; ++e) tensors.push_back(checkpoint.tensor(expert_tensor_name(model, layer, e, part)));
  return tensors;
}

at::Tensor weight_gram_of(const Checkpoint& checkpoint, const ModelDescription& model, int64_t layer, const Ranks& ranks) {
  const int64_t E = model.experts, elements = model.hidden_size * model.expert_intermediate;
  at::Tensor sum = at::zeros({E, E}, at::TensorOptions().dtype(at::kDouble));
  for (const ExpertPart part : expert_parts) {
    std::vector<at::Tensor> weights = part_of_all(checkpoint, model, layer, part);
    for (at::Tensor& weight : weights) weight = weight.reshape({-1});
    const std::string mine =
        gram_of_parts(E, elements, ranks.rank(), ranks.size(), [&](int64_t e, int64_t begin, int64_t n, const at::Tensor& out) {
          out.copy_(weights[static_cast<size_t>(e)].narrow(0, begin, n));
        });
    const std::vector<std::string> parts = ranks.gather(mine, 0);
    if (ranks.is_root()) sum.add_(sum_of_matrices(parts, E, gram_parts));
  }
  return sum;
}

/// rows: channels first .. first+n of K = X X^T, X = gate^T|up^T|down [D, 3F] without its mean over channels. Into `out`, float32 [n, D].
void weight_kernel_rows(const ExpertWeights& weights, int64_t first, int64_t n, Buffer& buffer, at::Tensor& out) {
  const auto copy = [&](const at::Tensor& part) {
    at::Tensor x = buffer.get(part.size(0), part.size(1), at::kFloat);
    x.copy_(part);
    return x;
  };
  out.zero_();
  for (const at::Tensor* part : {&weights.gate, &weights.up}) {
    at::Tensor x = copy(*part);  // [F, D]
    x.sub_(x.mean(at::IntArrayRef{1}, true));
    out.addmm_(x.narrow(1, first, n).t(), x);
  }
  at::Tensor x = copy(weights.down);  // [D, F]
  x.sub_(x.mean(at::IntArrayRef{0}, true));
  out.addmm_(x.narrow(0, first, n), x.t());
}

/// Rows of all experts' K come in panels: panel p is computed by rank p mod P.
at::Tensor weight_cka_of(const Checkpoint& checkpoint, const ModelDescription& model, int64_t layer, const Ranks& ranks) {
  const int64_t E = model.experts, D = model.hidden_size;
  const int64_t fitting = most_bytes / (E * D * static_cast<int64_t>(sizeof(float))) / row_step * row_step;
  const int64_t panel_rows = std::min(D, std::max(row_step, fitting)), panels = blocks_of(D, panel_rows);
  const std::vector<at::Tensor> gates = part_of_all(checkpoint, model, layer, ExpertPart::gate);
  const std::vector<at::Tensor> ups = part_of_all(checkpoint, model, layer, ExpertPart::up);
  const std::vector<at::Tensor> downs = part_of_all(checkpoint, model, layer, ExpertPart::down);
  std::vector<Buffer> buffers(static_cast<size_t>(at::get_num_threads()));
  std::string mine;
  for (int64_t p = ranks.rank(); p < panels; p += ranks.size()) {
    const int64_t first = p * panel_rows, n = std::min(panel_rows, D - first);
    const at::Tensor panel = at::empty({E, n, D}, at::TensorOptions().dtype(at::kFloat));
    for_each_task(E, [&](int64_t e, int thread) {
      const auto i = static_cast<size_t>(e);
      at::Tensor rows = panel[e];
      weight_kernel_rows({gates[i], ups[i], downs[i]}, first, n, buffers[static_cast<size_t>(thread)], rows);
    });
    const std::string parts = gram_of_parts(E, n * D, 0, 1, [&](int64_t e, int64_t begin, int64_t count, const at::Tensor& out) {
      const float* rows = const_data<float>(panel) + e * n * D + begin;
      for (int64_t c = 0; c < count; ++c) data<double>(out)[c] = static_cast<double>(rows[c]);
    });
    const at::Tensor hsic = sum_of_matrices({parts}, E, gram_parts);
    mine.append(static_cast<const char*>(hsic.const_data_ptr()), hsic.nbytes());
  }
  const std::vector<std::string> parts = ranks.gather(mine, 0);
  return ranks.is_root() ? cka_of(sum_of_matrices(parts, E, panels)) : at::Tensor();
}

}  // namespace

void collect_weight_statistics(ExpertStatistics& statistics, StatisticSet wanted, const Checkpoint& checkpoint,
                               const ModelDescription& model, const Ranks& ranks) {
  if (wanted.has(Statistic::weight_gram)) {
    const at::Tensor gram = weight_gram_of(checkpoint, model, statistics.layer, ranks);
    if (ranks.is_root()) statistics.weight_gram = gram;
  }
  if (wanted.has(Statistic::weight_cka)) statistics.weight_cka = weight_cka_of(checkpoint, model, statistics.layer, ranks);
}

}  // namespace hcsmoe
