#pragma once
// What the parts of the sweep share. Only src/forward/ includes this.

#include <map>
#include <mutex>
#include <vector>

#include "forward/products.h"
#include "forward/rotary.h"
#include "forward/routing.h"
#include "forward/weights.h"
#include "hcsmoe/forward.h"

namespace hcsmoe {

struct LayerSweep::State {
  State(const Checkpoint& checkpoint_, const ModelDescription& model_, const Compute& compute_, std::vector<at::Tensor> sequences_);

  const Checkpoint& checkpoint;
  const ModelDescription& model;
  const Compute compute;
  const std::vector<at::Tensor> sequences;  // int32 [T] each
  std::vector<int64_t> first_row;           // of each sequence, and N at the end
  Weights weights;
  int64_t layer = 0;   // the next one, or the one that has begun
  bool begun = false;  // its attention has run
  SweepFigures figures;

  at::Tensor hidden;                      // float32 [N, D]: the residual stream
  std::map<int64_t, RotaryTable> rotary;  // by sequence length

  // Buffers that are kept from layer to layer.
  // block_rows: float32 [N, D], what a sparse block reads; block_input: the same in the type of computation (block_rows, if that is
  // float32); block_output: float32 [N, D], of the routed experts.
  Buffer normed, query, key, value, attended, block_rows_buffer, block_input_buffer, block_output_buffer, routed_units;
  at::Tensor block_rows, block_input, block_output;
  std::vector<Buffer> thread_float, thread_gate, thread_up, thread_out, thread_logits;

  int64_t tokens() const { return first_row.back(); }
  bool half() const { return compute.dtype == at::kBFloat16; }
  std::string name(const std::string& pattern) const { return tensor_name(pattern, layer); }
  at::Tensor weight(const std::string& pattern, const std::string& slot) { return weights.get(name(pattern), slot); }
  at::Tensor float_weight(const std::string& pattern, const std::string& slot) { return weights.get_float(name(pattern), slot); }
  static std::string bias_of(std::string weight_name) { return weight_name.replace(weight_name.rfind("weight"), 6, "bias"); }

  void embed();
  void attention();
  void latent_attention();
  void dense_block();
  void sparse_input();
  void shared_expert();
  void routed_experts(StatisticsAccumulator* statistics, const SparseBlock* instead);

  /// Normed rows of hidden[first .. first+n) into out, one block of float32 or the type of computation; rows beyond n are zero.
  /// scratch: float [D], not needed where out is float32.
  void norm_rows(int64_t first, int64_t n, const at::Tensor& weight, at::Tensor& out, float* scratch) const;
  /// gate, up, down of a feed-forward block on `input` [rows of N padded, D], added to `output` float32 [N, D], each row times scale[row]
  /// (all 1 where scale is empty).
  void feed_forward(const at::Tensor& input, const at::Tensor& gate, const at::Tensor& up, const at::Tensor& down,
                    const std::vector<float>& scale, at::Tensor& output);
  Routing route(StatisticsAccumulator* statistics, const SparseBlock* instead);
};

}  // namespace hcsmoe
