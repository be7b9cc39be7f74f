// What reconstruct() holds at its widest, term by term.

#include <algorithm>
#include <cmath>

#include "hcsmoe/reconstruction.h"
#include "reconstruction/gauss_newton.h"
#include "reconstruction/panels.h"
#include "reconstruction/token_outputs.h"

namespace hcsmoe {

ReconstructionMemory reconstruction_memory(const ReconstructionSize& size) {
  const auto D = static_cast<double>(size.hidden), F = static_cast<double>(size.intermediate), K = static_cast<double>(size.kept),
             N = static_cast<double>(size.tokens), R = static_cast<double>(size.expert_tokens), w = static_cast<double>(size.weight_bytes);
  const auto sampled = static_cast<double>(std::min(size.all_tokens, most_output_tokens) / std::max(size.ranks, 1) + 1);
  const auto chunk = std::min(static_cast<double>(output_chunk(size.kept, size.hidden)), sampled);
  const auto units = static_cast<double>(std::min(size.intermediate, most_units)), blocks = std::ceil(F / units);
  const bool full = size.what == Reconstruction::full;
  ReconstructionMemory memory;

  // Merged and fitted experts, float32 down projections, and the layer before, which its owner is writing.
  memory.experts = K * D * F * (full ? 8 * w + 4 : 6 * w + 4);
  if (size.several) memory.experts += K * D * F * 3 * w;
  // What is left of the target before and after a step, and the inputs of the training tokens.
  memory.tokens = 3 * 4 * N * D;
  if (size.propagate)
    memory.tokens += N * D * static_cast<double>(4 + 4 + size.compute_bytes) + 4 * N * D;  // its hidden states; its target
  // Units and their products. Gauss-Newton: two slopes, units of a trial, a product with D^T, slopes side by side; input, rest, outputs.
  memory.expert_tokens = 4 * R * (full ? 5 * F + 2 * units + std::max(F, D) + 7 * D : F + D);
  if (full) {
    // Gram, its ridge and its factor in float64; right side, solution (twice) in float64, steps in float32.
    const double down = 24 * F * F + 32 * F * D;
    // S of a block: int64 sums, float64, D^T D in float32. C: int64 sums, float64, factor.
    const double kept = blocks * 16 * units * units + 4 * D * D;  // factors in float32
    const double s = 68 * units * units, c = 20 * D * D;
    // Gradients [2F, D] in float64, old and new, by halves; direction, step, starting weights and D^T in float32.
    const double iteration = 76 * F * D;
    memory.matrices = std::max(down, kept + std::max({s, c, iteration}));
    memory.matrices += 4.0 * static_cast<double>(panel_rows) * std::max({2 * units, F, D}) * static_cast<double>(size.threads);
  }
  if (size.fits_rows) memory.matrices = std::max(memory.matrices, 24 * D * D + 16 * K * D);  // least squares: as of the down projection
  if (size.what == Reconstruction::none) return memory;
  // Gram matrices of the sampled tokens' outputs, while a chunk of outputs and one expert's units and product are there.
  memory.output_grams = 4 * sampled * (K * K + K + D + 2) + 4 * chunk * (K * D + D + F);
  return memory;
}

}  // namespace hcsmoe
