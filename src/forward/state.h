#pragma once
// What the parts of the sweep share. Only src/forward/ includes this.

#include <map>
#include <vector>

#include "forward/kernels.h"
#include "forward/products.h"
#include "forward/rotary.h"
#include "forward/weights.h"
#include "hcsmoe/forward.h"

namespace hcsmoe {

struct LayerSweep::State {
  State(const Checkpoint& checkpoint_, const ModelDescription& model_, const Compute& compute_, std::vector<at::Tensor> sequences_,
        std::unique_ptr<WeightStream> stream_);

  const Checkpoint& checkpoint;
  const ModelDescription& model;
  const Compute compute;
  const Kernels& kernels;
  const std::vector<at::Tensor> sequences;  // int32 [T] each, on the CPU
  std::vector<int64_t> first_row;           // of each sequence, and N at the end
  const std::unique_ptr<WeightStream> stream;
  Weights weights;     // of the stream
  int64_t layer = 0;   // the next one, or the one that has begun
  bool begun = false;  // its attention has run
  SweepFigures figures;

  at::Tensor hidden;                      // float32 [N, D]: the residual stream
  std::map<int64_t, RotaryTable> rotary;  // by sequence length

  // Buffers that are kept from layer to layer, on the device.
  // block_rows: float32 [N, D], what a sparse block reads; block_input: the same in the type of computation (block_rows, if that is
  // float32); block_output: float32 [N, D], of the routed experts.
  Buffer normed, query, key, value, attended, block_rows_buffer, block_input_buffer, block_output_buffer, routed_units;
  Buffer cos_rows, sin_rows, shared_scale, chosen_experts, chosen_weights, routed_norms;
  at::Tensor block_rows, block_input, block_output;
  std::vector<Buffer> thread_gate, thread_up, thread_out, thread_logits;

  int64_t tokens() const { return first_row.back(); }
  /// Of a query and a key at or before it, in all sequences.
  double attended_pairs() const {
    double pairs = 0;
    for (size_t s = 0; s < sequences.size(); ++s) {
      const auto T = static_cast<double>(first_row[s + 1] - first_row[s]);
      pairs += T * (T + 1) / 2;
    }
    return pairs;
  }
  bool half() const { return compute.dtype == at::kBFloat16; }
  at::TensorOptions product_type() const { return compute.type(compute.dtype); }
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

  /// Block b of this rank's tokens: work(its first row, its rows, thread). All blocks but the last have compute.row_block rows.
  void for_each_block(const std::function<void(int64_t begin, int64_t n, int thread)>& work) const;
  /// gate, up, down of a feed-forward block on `input` [N padded, D], added to `output` float32 [N, D], each row times scale[row], float32
  /// [N] (all 1 where it is undefined).
  void feed_forward(const at::Tensor& input, const at::Tensor& gate, const at::Tensor& up, const at::Tensor& down, const at::Tensor& scale,
                    at::Tensor& output);
  /// The rotation of each row of sequences s0 .. s1, float32 [rows padded, rotary_size / 2]; zeros below.
  RotaryTable rotary_rows(size_t s0, size_t s1, int64_t rotary_size);
  /// Adds y w^T + bias to hidden[first .. first+rows). y [rows padded, columns of w]; the rows below become 0.
  void add_projected(const at::Tensor& y, const at::Tensor& w, const at::Tensor& bias, int64_t first, int64_t rows);
  RoutedRows route(StatisticsAccumulator* statistics, const SparseBlock* instead);
};

}  // namespace hcsmoe
