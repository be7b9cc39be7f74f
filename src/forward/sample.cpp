#include "hcsmoe/sample.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>

#include "forward/gram.h"
#include "forward/kernels.h"
#include "forward/products.h"
#include "forward/weights.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

constexpr int64_t token_block = 64;
constexpr int64_t most_cka_tokens = 512;
constexpr int64_t most_bytes = int64_t{1} << 28;  // of outputs that are held at a time

/// The rows in whole blocks, zero-padded, on the device. float32 [S, D] -> [blocks * token_block, D]
at::Tensor in_blocks(const at::Tensor& rows, const Compute& compute) {
  at::Tensor result = at::zeros({padded(rows.size(0), token_block), rows.size(1)}, compute.type(at::kFloat));
  result.narrow(0, 0, rows.size(0)).copy_(rows);
  return result;
}

/// Runs a layer's experts on blocks of sampled tokens.
class SampleExperts {
 public:
  /// rows: float32 [blocks * token_block, D]
  SampleExperts(const at::Tensor& rows, const Checkpoint& checkpoint, const ModelDescription& model, const Compute& compute, int64_t layer)
      : model_(model),
        layer_(layer),
        compute_(compute),
        rows_(rows.to(compute.dtype)),
        weights_(checkpoint, compute.dtype, compute.device),
        thread_(static_cast<size_t>(compute.threads)) {}

  /// The outputs of one expert for these blocks: float32 [blocks.size() * token_block, D] into `out`, contiguous, on the device.
  void outputs(int64_t expert, const std::vector<int64_t>& blocks, const at::Tensor& out) {
    const auto weight = [&](ExpertPart part, const char* slot) {
      return weights_.get(expert_tensor_name(model_, layer_, expert, part), slot);
    };
    const at::Tensor gate = weight(ExpertPart::gate, "gate"), up = weight(ExpertPart::up, "up"), down = weight(ExpertPart::down, "down");
    const int64_t D = model_.hidden_size, F = model_.expert_intermediate;
    const at::TensorOptions type = compute_.type(compute_.dtype);
    compute_.kernels->for_each_task(static_cast<int64_t>(blocks.size()), [&](int64_t i, int thread) {
      Buffers& buffers = thread_[static_cast<size_t>(thread)];
      const at::Tensor x = rows_.narrow(0, blocks[static_cast<size_t>(i)] * token_block, token_block);
      at::Tensor g = buffers.gate.get(token_block, F, type), u = buffers.up.get(token_block, F, type);
      at::Tensor y = buffers.out.get(token_block, D, type);
      block_product(x, gate, g);
      block_product(x, up, u);
      compute_.kernels->gated_units(g, u);
      block_product(g, down, y);
      out.narrow(0, i * token_block, token_block).copy_(y);
    });
  }

 private:
  struct Buffers {
    Buffer gate, up, out;
  };
  const ModelDescription& model_;
  const int64_t layer_;
  const Compute& compute_;
  const at::Tensor rows_;  // in the type of computation
  Weights weights_;
  std::vector<Buffers> thread_;
};

/// Router logits of the sampled tokens: float32 [S, E].
at::Tensor logits_of(const at::Tensor& sample, const Checkpoint& checkpoint, const ModelDescription& model, const Compute& compute,
                     int64_t layer) {
  Weights weights(checkpoint, at::kFloat, compute.device);
  const at::Tensor router = weights.get(tensor_name(model.names.router, layer), "router"), rows = in_blocks(sample, compute);
  at::Tensor logits = at::empty({rows.size(0), model.experts}, compute.type(at::kFloat));
  compute.kernels->for_each_task(rows.size(0) / token_block, [&](int64_t b, int) {
    at::Tensor z = logits.narrow(0, b * token_block, token_block);
    block_product(rows.narrow(0, b * token_block, token_block), router, z);
  });
  return logits.narrow(0, 0, sample.size(0)).to(at::kCPU, at::kFloat, false, true);
}

/// Block b of the sample is computed by rank b mod P. float32 [S, E(E+1)/2] on rank 0.
at::Tensor token_gram_of(const at::Tensor& sample, SampleExperts& experts, int64_t E, const Compute& compute, const Ranks& ranks) {
  const int64_t S = sample.size(0), D = sample.size(1), pairs = E * (E + 1) / 2, blocks = blocks_of(S, token_block);
  const auto block_bytes = static_cast<size_t>(token_block * pairs) * sizeof(float);
  std::vector<int64_t> mine;
  for (int64_t b = ranks.rank(); b < blocks; b += ranks.size()) mine.push_back(b);
  std::string grams(mine.size() * block_bytes, '\0');
  const auto together = static_cast<size_t>(std::max<int64_t>(1, most_bytes / (E * token_block * D * static_cast<int64_t>(sizeof(float)))));
  const auto most_tokens = static_cast<int64_t>(std::min(together, mine.size())) * token_block;
  const at::Tensor buffer = at::empty({E, most_tokens, D}, compute.type(at::kFloat));
  for (size_t begin = 0; begin < mine.size(); begin += together) {
    const std::vector<int64_t> now(mine.begin() + static_cast<std::ptrdiff_t>(begin),
                                   mine.begin() + static_cast<std::ptrdiff_t>(std::min(mine.size(), begin + together)));
    const int64_t tokens = static_cast<int64_t>(now.size()) * token_block;
    const at::Tensor outputs = buffer.narrow(1, 0, tokens);
    for (int64_t e = 0; e < E; ++e) experts.outputs(e, now, outputs[e]);
    compute.kernels->token_grams(outputs, at::from_blob(grams.data() + begin * block_bytes, {tokens, pairs}, at::kFloat));
  }
  const std::vector<std::string> parts = ranks.gather(grams, 0);
  if (!ranks.is_root()) return {};
  at::Tensor result = at::empty({S, pairs}, at::kFloat);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t n = std::min(token_block, S - b * token_block);
    std::memcpy(data<float>(result) + b * token_block * pairs,
                parts[static_cast<size_t>(b % ranks.size())].data() + static_cast<size_t>(b / ranks.size()) * block_bytes,
                static_cast<size_t>(n * pairs) * sizeof(float));
  }
  return result;
}

/// Y Y^T of an expert's outputs Y [M', D], centred over its first M rows; the others are padding, and 0 in the result. float32 [M', M']
at::Tensor centred_kernel(at::Tensor outputs, int64_t M, const Compute& compute) {
  const int64_t padded_rows = outputs.size(0);
  compute.kernels->for_each_task(1, [&](int64_t, int) {
    const at::Tensor real = outputs.narrow(0, 0, M);
    real.sub_(real.to(at::kDouble).mean(at::IntArrayRef{0}).to(at::kFloat));
    outputs.narrow(0, M, padded_rows - M).zero_();
  });
  at::Tensor kernel = at::empty({padded_rows, padded_rows}, compute.type(at::kFloat));
  compute.kernels->for_each_task(padded_rows / token_block, [&](int64_t b, int) {
    at::Tensor rows = kernel.narrow(0, b * token_block, token_block);
    block_product(outputs.narrow(0, b * token_block, token_block), outputs, rows);
  });
  return kernel.cpu();
}

/// Expert e is computed by rank e mod P. float64 [E, E] on rank 0.
at::Tensor output_cka_of(const at::Tensor& sample, const Checkpoint& checkpoint, const ModelDescription& model, const Compute& compute,
                         int64_t layer, const Ranks& ranks) {
  const int64_t E = model.experts, D = model.hidden_size, M = std::min(most_cka_tokens, sample.size(0));
  at::Tensor rows = at::empty({M, D}, at::kFloat);
  int64_t next = 0;
  for (const int64_t t : sampled_tokens(sample.size(0), M)) rows[next++].copy_(sample[t]);
  rows = in_blocks(rows, compute);
  SampleExperts experts(rows, checkpoint, model, compute, layer);
  std::vector<int64_t> blocks;
  for (int64_t b = 0; b < rows.size(0) / token_block; ++b) blocks.push_back(b);

  const int64_t side = rows.size(0);
  const auto kernel_bytes = static_cast<size_t>(side * side) * sizeof(float);
  std::string mine;
  const at::Tensor outputs = at::empty({side, D}, compute.type(at::kFloat));
  for (int64_t e = ranks.rank(); e < E; e += ranks.size()) {
    experts.outputs(e, blocks, outputs);
    const at::Tensor kernel = centred_kernel(outputs, M, compute);
    mine.append(const_data<char>(kernel), kernel_bytes);
  }
  const std::vector<std::string> kernels = ranks.gather(mine, 0);
  if (!ranks.is_root()) return {};
  const std::string parts = gram_of_parts(E, side * side, 0, 1, [&](int64_t e, int64_t begin, int64_t n, const at::Tensor& out) {
    const auto* kernel = reinterpret_cast<const float*>(kernels[static_cast<size_t>(e % ranks.size())].data() +
                                                        static_cast<size_t>(e / ranks.size()) * kernel_bytes);
    for (int64_t i = 0; i < n; ++i) data<double>(out)[i] = static_cast<double>(kernel[begin + i]);
  });
  return cka_of(sum_of_matrices({parts}, E, gram_parts));
}

}  // namespace

std::vector<int64_t> sampled_tokens(int64_t tokens, int64_t size) {
  const int64_t S = std::min(size, tokens);
  std::vector<int64_t> result;
  // tokens * S fits: 2^40 tokens and a sample of 2^20 at most.
  for (int64_t i = 0; i < S; ++i) result.push_back(i * tokens / S);
  return result;
}

double sample_statistics_bytes(const ModelDescription& model, StatisticSet wanted, int64_t sample, int threads) {
  const auto E = static_cast<double>(model.experts), D = static_cast<double>(model.hidden_size), S = static_cast<double>(sample),
             F = static_cast<double>(model.expert_intermediate), block = static_cast<double>(token_block);
  const auto panel = [&](double rows) { return std::max(static_cast<double>(most_bytes), 4 * E * rows * D); };
  double kept = 0, widest = 0;  // together with what was collected before; one statistic at a time
  if (wanted.without({Statistic::sample_input, Statistic::token_output_gram, Statistic::output_cka}) != wanted) kept += 8 * S * D;
  if (wanted.has(Statistic::token_output_gram)) {
    const double grams = 4 * S * E * (E + 1) / 2;  // of this rank, of all ranks, in the order of the tokens
    kept += grams;
    widest = std::max(widest, 2 * grams + std::min(panel(block), 4 * E * S * D));
  }
  if (wanted.has(Statistic::output_cka)) {
    const double side = std::min(S, static_cast<double>(most_cka_tokens));
    widest = std::max(widest, 2 * 4 * E * side * side + 4 * side * D);
  }
  if (wanted.has(Statistic::weight_cka)) widest = std::max(widest, std::min(panel(block), 4 * E * D * D) + 4 * D * F * threads);
  return kept + widest;
}

at::Tensor gather_sample(const at::Tensor& rows, int64_t first_token, const std::vector<int64_t>& sampled, const Ranks& ranks) {
  const int64_t N = rows.size(0), D = rows.size(1), S = static_cast<int64_t>(sampled.size());
  // One rank has a row, the others zeros: the sum of the bits, two values to an integer, is the row.
  std::vector<int64_t> bits(static_cast<size_t>((S * D + 1) / 2), 0);
  auto* const values = reinterpret_cast<char*>(bits.data());
  const auto row_bytes = static_cast<size_t>(D) * sizeof(float);
  std::vector<int64_t> mine;  // rows
  int64_t first = 0;          // of them in the sample
  for (const int64_t token : sampled) {
    first += token < first_token;
    if (token >= first_token && token < first_token + N) mine.push_back(token - first_token);
  }
  const at::Tensor found = rows.index_select(0, at::tensor(at::ArrayRef<int64_t>(mine), at::kLong).to(rows.device())).cpu();
  if (!mine.empty()) std::memcpy(values + static_cast<size_t>(first) * row_bytes, const_data<float>(found), mine.size() * row_bytes);
  ranks.all_reduce_sum(bits);
  at::Tensor result = at::empty({S, D}, at::kFloat);
  std::memcpy(result.mutable_data_ptr(), values, static_cast<size_t>(S) * row_bytes);
  return result;
}

void collect_sample_statistics(ExpertStatistics& statistics, StatisticSet wanted, const Checkpoint& checkpoint,
                               const ModelDescription& model, const Compute& compute, const Ranks& ranks) {
  const int64_t layer = statistics.layer;
  const at::Tensor& sample = statistics.sample_input;
  if (wanted.has(Statistic::token_output_gram)) {
    SampleExperts experts(in_blocks(sample, compute), checkpoint, model, compute, layer);
    statistics.token_output_gram = token_gram_of(sample, experts, model.experts, compute, ranks);
    if (ranks.is_root()) statistics.sample_logits = logits_of(sample, checkpoint, model, compute, layer);
  }
  if (wanted.has(Statistic::output_cka)) {
    statistics.output_cka = output_cka_of(sample, checkpoint, model, compute, layer, ranks);
  }
}

}  // namespace hcsmoe
