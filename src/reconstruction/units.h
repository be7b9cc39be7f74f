#pragma once
// The intermediate units of one expert over the tokens that are routed to it: what its down projection is fitted on.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "forward/products.h"
#include "forward/routing.h"
#include "hcsmoe/reconstruction.h"

namespace hcsmoe {

/// The top-k routing of this rank's tokens over router rows. input float32 [N, D], router float32 [K, D].
Routing route_rows(const at::Tensor& input, const at::Tensor& router, const RoutingRule&);

/// Of one expert: gate x h for each token routed to it, the training tokens first, then the held-out ones, each ascending.
struct Units {
  std::vector<int32_t> rows;        // token of each row
  std::vector<float> gates;         // of each row
  int64_t training = 0;             // of the rows
  std::vector<int64_t> group_end;   // [groups] of the training rows
  at::Tensor values;                // [padded rows, F] in the type of computation: gate x h; zero beyond the rows
  at::Tensor gate_slope, up_slope;  // float32, if asked for: gate x derivative of h by the gate and up projections' outputs
  int64_t count() const { return static_cast<int64_t>(rows.size()); }
};

/// Buffers that are kept from expert to expert.
class UnitsOfExperts {
 public:
  UnitsOfExperts(const at::Tensor& input, const TokenGroups& groups, const Compute& compute);
  /// Valid until the next call.
  const Units& of(const ExpertWeights& expert, const std::vector<Routing::Entry>& entries, bool slopes = false);

 private:
  const at::Tensor input_;  // [N, D], float32 or in the type of computation
  const TokenGroups& groups_;
  const Compute compute_;
  Units units_;
  Buffer values_, gate_slope_, up_slope_, gate_, up_;
  std::vector<Buffer> thread_rows_, thread_gate_, thread_up_, thread_wide_gate_, thread_wide_up_, thread_values_;
};

/// rows[i] of x [N, C], zero-padded to whole blocks: [padded, C] in the type of x
at::Tensor gathered(const at::Tensor& x, const std::vector<int32_t>& rows, Buffer& buffer);

/// x [rows, C] float32 in another type: x itself, or converted into the buffer.
at::Tensor in_type(const at::Tensor& x, at::ScalarType type, Buffer& buffer);

/// a w^T in blocks of routed_row_block rows: a [padded, I], w [O, I] of any type, converted to that of a -> float32 [padded, O]. Products
/// of bfloat16 are rounded to bfloat16.
at::Tensor row_product(const at::Tensor& a, const at::Tensor& w, Buffer& buffer);

}  // namespace hcsmoe
