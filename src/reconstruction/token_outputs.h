#pragma once
// What the block's output error is as a function of the gates alone, for a sample of tokens: with o_k the output of expert k and y the
// target, |sum_k g_k o_k - y|^2 = g^T G g - 2 g^T b + |y|^2, G_kl = <o_k, o_l>, b_k = <o_k, y>. So router rows are fitted without touching
// an output again.

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "forward/products.h"
#include "hcsmoe/reconstruction.h"

namespace hcsmoe {

inline constexpr int64_t most_output_tokens = 8192;  // sampled, of all ranks

/// Tokens whose outputs [tokens, K, D] are in memory at a time: 256 MiB, or one row block.
inline int64_t output_chunk(int64_t K, int64_t D) {
  return std::max<int64_t>(1, (int64_t{256} << 20) / (K * D * 4 * routed_row_block)) * routed_row_block;
}

struct TokenOutputs {
  std::vector<int32_t> rows;       // sampled tokens of this rank: training tokens ascending, then held-out ones
  std::vector<int64_t> group_end;  // of the training tokens
  int64_t training = 0;
  at::Tensor input;   // float32 [n padded, D]
  at::Tensor gram;    // float32 [n, K, K]
  at::Tensor dot;     // float32 [n, K]
  at::Tensor square;  // float64 [n]: |y|^2
};

/// Every `every`-th calibration token. Every expert runs on each sampled token.
TokenOutputs token_outputs(const BlockTokens&, int64_t every, const std::vector<ExpertWeights>& experts,
                           const std::vector<at::Tensor>& down, const Compute&);

/// Minimises the block's output error on the training tokens over the rows, from `start` [K, D]; correction biases stay as they are.
/// float64 [K, D]. Collective.
at::Tensor rows_by_output_error(const TokenOutputs&, const RoutingRule&, const at::Tensor& start, const Ranks&);

}  // namespace hcsmoe
