#pragma once
// What runs between the matrix products of the sweep, behind one interface with two implementations: our own loops over rows in host memory
// (row_kernels.h), and operations of libtorch, which run on any device. The stages call the kernels of their Compute and never ask where
// tensors are. All tensors of a call are on one device, contiguous, and float32 where nothing else is said; "half or float" is the type of
// computation.
//
// Both give the same bits for a row whatever its place and its neighbours: the loops by construction, the operations because they work on
// whole blocks, whose shape is fixed; rows that a block has too many are zeros. Sums over rows are order-free integers (fixed_point.h) in
// both. Where the two differ, they differ by rounding.
//
// Letters: R rows of a block, n of them in use, D, F, E, k as in families.h, N tokens of this rank, M routed tokens of all its experts.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "hcsmoe/families.h"
#include "hcsmoe/forward.h"

namespace hcsmoe {

/// Which rows of this rank go to which expert: by expert, then by row. A row stands once in an expert's list.
struct RoutedRows {
  at::Tensor rows;             // int64 [M]
  at::Tensor experts;          // int64 [M]
  at::Tensor weights;          // [M]
  int64_t row_blocks = 0;      // of this rank's tokens
  std::vector<int64_t> first;  // [experts x row_blocks + 1], in host memory: where the rows of an expert's row block begin

  struct Range {
    int64_t begin, size;
  };
  Range of(int64_t expert) const;
  Range of(int64_t expert, int64_t row_block) const;
  int64_t largest() const;  // rows of the busiest expert
};

/// What happens to the heads of a query or key between its projection and the attention. Undefined tensors: nothing.
struct HeadFinish {
  int64_t heads = 1;
  at::Tensor bias = {};  // [width]
  at::Tensor norm = {};  // [n]: of the first n channels of each head
  double norm_epsilon = 0;
  at::Tensor cos = {}, sin = {};  // [R, r/2]: of each row's position; r channels of each head are rotated
  int64_t rotate_from = 0;        // the first of them
  bool interleaved = false;       // in pairs (2c, 2c + 1) instead of (c, c + r/2)
};

/// What the router's statistics are added to, int64 [2, E] and [2, E, E] (StatisticsAccumulator).
struct RouterSums {
  at::Tensor probability, logit, gram;
};

/// Of some rows, while the vocabulary passes in chunks: log sum exp z = highest + log(sum), and the likeliest token. float64, int64 [n]
struct LikelihoodRows {
  at::Tensor highest, sum, top;
  LikelihoodRows of(int64_t first, int64_t n) const;
};
LikelihoodRows likelihood_rows(int64_t n, const Compute&);

class Kernels {
 public:
  virtual ~Kernels() = default;

  /// task(i, thread) for i in [0, tasks). On the CPU: for_each_task (products.h). On a device: in order, on the calling thread, which
  /// submits to one stream.
  virtual void for_each_task(int64_t tasks, const std::function<void(int64_t task, int thread)>& task) const = 0;

  /// How many of these heads' attention is one task: one, or all.
  virtual int64_t heads_of_task(int64_t heads) const = 0;

  /// out = x / sqrt(mean(x^2) + epsilon) * weight. x [n, D], weight [D], out [R, D] half or float; its rows from n on become 0.
  virtual void rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon, at::Tensor& out) const = 0;

  /// Adds the bias, norms and rotates the first n rows in place, in this order. rows [R, width] half or float; the rows below may change
  /// too.
  virtual void finish_heads(at::Tensor& rows, int64_t n, const HeadFinish& finish) const = 0;

  /// out += bias, then out += scale * y, row by row. y [n, D] half or float; bias [D] and scale [n] may be undefined. out [n, D]
  virtual void add_rows(const at::Tensor& y, const at::Tensor& bias, const at::Tensor& scale, at::Tensor& out) const = 0;

  /// out = in, of any floating types and one shape.
  virtual void convert(const at::Tensor& in, at::Tensor& out) const = 0;

  /// h = gate / (1 + exp(-gate)) * up, written over gate. [R, F] half or float
  virtual void gated_units(at::Tensor& gate, const at::Tensor& up) const = 0;

  /// The same, and sums += sum over the first n rows of h in units of 2^-30, before h is rounded. sums: int64 [2, F], each half contiguous.
  /// bad, int64 [1], grows if one of them is not finite or >= 2^21. At most 2^20 rows.
  virtual void gated_units_summed(at::Tensor& gate, const at::Tensor& up, int64_t n, at::Tensor sums, at::Tensor bad) const = 0;

  /// out = 1 / (1 + exp(-<x, gate>)), the product in double. x [n, D], gate [1, D], out [n]
  virtual void sigmoid_gates(const at::Tensor& x, const at::Tensor& gate, at::Tensor out) const = 0;

  /// Of the first n rows of logits [R, E]: the experts chosen by the rule, best first, int64 [n, k], and their weights [n, k]; the router's
  /// statistics, if asked for. Error: a logit is not finite, or too large for a statistic.
  virtual void route(const at::Tensor& logits, int64_t n, const RoutingRule& rule, at::Tensor chosen, at::Tensor weights,
                     const RouterSums* sums) const = 0;

  /// Turns chosen experts, [N, k], around. expert_of_row: the expert that a chosen router row leads to (SparseBlock), or empty; weights of
  /// rows that lead a token to one expert are added up, in the order of `chosen`.
  virtual RoutedRows by_expert(const at::Tensor& chosen, const at::Tensor& weights, const std::vector<int64_t>& expert_of_row,
                               int64_t experts, int64_t row_block) const = 0;

  /// out[i] = source[rows[i] - first], for the rows of `rows`. source [any, W], out [at least as many, W], of one type.
  virtual void gather_rows(const at::Tensor& source, const at::Tensor& rows, int64_t first, at::Tensor out) const = 0;

  /// out[rows[i]] += weights[i] * y[i] and norms[i] = |y[i]|, for the m rows of `rows`, which differ. y [R, D] half or float, out [N, D],
  /// norms float64 [m].
  virtual void add_routed(const at::Tensor& y, const at::Tensor& rows, const at::Tensor& weights, at::Tensor& out,
                          at::Tensor norms) const = 0;

  /// sums[e] += the values, float64 [M], of expert e's rows, times their weights if `weighted`. sums: int64 [2, E]. Error: a value is not
  /// finite, or too large.
  virtual void add_by_expert(const at::Tensor& values, const RoutedRows& routed, bool weighted, at::Tensor& sums) const = 0;

  /// out[t] = <y_e(t), y_f(t)> for e <= f, in double: 0-0, 0-1, ..., 1-1, ... y [E, t, D], out [t, E(E+1)/2] in host memory.
  virtual void token_grams(const at::Tensor& y, at::Tensor out) const = 0;

  /// Takes the next n entries of the vocabulary, from `first` on: z [at least the rows, n]. With a reference model's logits `other` of the
  /// same rows and entries, whose own rows are `of_other`, cross += sum of exp(other - of_other.highest) (other - z), float64 [rows], and
  /// is rescaled when that highest logit rises.
  virtual void likelihoods(const at::Tensor& z, int64_t first, LikelihoodRows& rows, const at::Tensor* other, LikelihoodRows* of_other,
                           at::Tensor* cross) const = 0;
};

/// Operations of libtorch: what runs on devices. Deterministic there too: no sum of floating numbers is taken in an order that may change.
const Kernels& tensor_kernels();

/// Sets the kernels and the rows of blocks for compute.device. In a file of its own: programs of the tests have their own.
void choose_kernels(Compute&);

}  // namespace hcsmoe
