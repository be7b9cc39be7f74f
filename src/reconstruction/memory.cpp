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

  // Merged and fitted experts, float32 down projections, a fit on some of the tokens, and the layer before, which its owner is writing.
  memory.experts = K * D * F * (full ? 10 * w + 8 : 6 * w + 4);
  if (size.several) memory.experts += K * D * F * 3 * w;
  // What is left of the target, inputs in the type of computation and those of the training tokens; a quarter of them for the early fit.
  memory.tokens = N * D * (4 + 4 + (size.compute_bytes < 4 ? static_cast<double>(size.compute_bytes) : 0));
  if (full) memory.tokens += memory.tokens / 4 + 2 * N * D;
  if (size.propagate)
    memory.tokens += N * D * static_cast<double>(4 + 4 + size.compute_bytes) + 4 * N * D;  // its hidden states; its target
  // Units before and after the step, two slopes, their products with D^T, a copy in padded groups; slopes of the sampled rows side by side;
  // input, rest, outputs, those of a step, a copy in padded groups, and the sampled rows.
  memory.expert_tokens = 4 * R * (full ? 7 * F + units + 6 * D : F + D);
  if (full) {
    const auto at_once = static_cast<double>(std::clamp((3 + size.ranks - 1) / std::max(size.ranks, 1), 1, std::max(size.threads, 1)));
    // Gram in float64; its ridges and their factors in float64, dealt to ranks, and the factors of all in float32; right side, steps.
    const double down = (8 + 16 * at_once + 12) * F * F + 24 * F * D;
    // S of a block and C: int64 sums and float64. Sides of the step: gradient by halves in int64 and float64, then float32.
    const double kept = blocks * 32 * units * units, s = 64 * units * units, c = 20 * D * D, sides = 48 * F * D;
    memory.matrices = std::max(down, kept + std::max({s, c, sides}));
    memory.matrices += 4.0 * static_cast<double>(panel_rows) * std::max({2 * units, F, D}) * static_cast<double>(size.threads);
  }
  if (size.fits_rows) memory.matrices = std::max(memory.matrices, 24 * D * D + 16 * K * D);  // least squares: as of the down projection
  if (size.what == Reconstruction::none) return memory;
  // Gram matrices of the sampled tokens' outputs, while a chunk of outputs and one expert's units and product are there.
  memory.output_grams = 4 * sampled * (K * K + K + D + 2) + 4 * chunk * (K * D + D + F);
  return memory;
}

}  // namespace hcsmoe
