// reconstruction_memory on cases that were counted by hand.

#include <gtest/gtest.h>

#include "hcsmoe/reconstruction.h"

namespace hcsmoe {
namespace {

ReconstructionSize small() {
  ReconstructionSize size;
  size.hidden = 4;
  size.intermediate = 3;
  size.kept = 2;
  size.tokens = 10;
  size.expert_tokens = 6;
  size.all_tokens = 19;
  size.weight_bytes = 2;
  size.compute_bytes = 2;
  size.ranks = 2;
  size.threads = 2;
  return size;
}

TEST(ReconstructionMemory, OfASmallBlock) {
  const ReconstructionMemory memory = reconstruction_memory(small());
  EXPECT_EQ(memory.experts, 2 * 12 * (10 * 2 + 8));  // 2 experts of 4 x 3
  EXPECT_EQ(memory.tokens,
            1.25 * 10 * (4 + 4 + 2) * 4 + 2 * 10 * 4);     // [10, 4] twice in float32 and once in bfloat16; a quarter of them, and targets
  EXPECT_EQ(memory.expert_tokens, 4 * 6 * (21 + 3 + 24));  // seven [6, 3], half a [6, 6], six [6, 4]
  EXPECT_EQ(memory.matrices, 32 * 9 + 48 * 12 + 512 * 6 * 2);  // S, the sides of the step, a panel a thread
  EXPECT_EQ(memory.output_grams, 4 * 10 * (4 + 2 + 4 + 2) + 4 * 10 * (8 + 4 + 3));
  EXPECT_EQ(memory.total(), memory.experts + memory.tokens + memory.expert_tokens + memory.matrices);
}

TEST(ReconstructionMemory, TheRouterAloneNeedsNoEquations) {
  ReconstructionSize size = small();
  size.what = Reconstruction::router;
  const ReconstructionMemory memory = reconstruction_memory(size);
  EXPECT_EQ(memory.matrices, 0);
  EXPECT_EQ(memory.expert_tokens, 4 * 6 * (3 + 4));
  EXPECT_EQ(memory.total(), memory.experts + memory.tokens + memory.output_grams);
}

TEST(ReconstructionMemory, FittedRowsAlone) {
  ReconstructionSize size = small();
  size.what = Reconstruction::none;
  size.fits_rows = true;
  const ReconstructionMemory memory = reconstruction_memory(size);
  EXPECT_EQ(memory.matrices, 24 * 16 + 16 * 8);
  EXPECT_EQ(memory.output_grams, 0);
}

TEST(ReconstructionMemory, PropagationKeepsASecondStream) {
  ReconstructionSize size = small();
  const double before = reconstruction_memory(size).tokens;
  size.propagate = true;
  EXPECT_EQ(reconstruction_memory(size).tokens - before, 10 * 4 * (4 + 4 + 2 + 4));
}

TEST(ReconstructionMemory, CandidatesKeepTheBestBlock) {
  ReconstructionSize size = small();
  const double before = reconstruction_memory(size).total();
  size.several = true;
  EXPECT_EQ(reconstruction_memory(size).total() - before, 2 * 3 * 12 * 2);
}

TEST(ReconstructionMemory, WideExpertsHaveABlockDiagonalS) {
  // Mixtral-8x22B: F = 16384 is 32 blocks of 512 units. The Gram matrix of all units is the widest: 36 F^2 + 24 F D.
  ReconstructionSize size = small();
  size.hidden = 6144;
  size.intermediate = 16384;
  size.kept = 4;
  size.threads = 0;
  EXPECT_EQ(reconstruction_memory(size).matrices, 36.0 * 16384 * 16384 + 24.0 * 16384 * 6144);
}

TEST(ReconstructionMemory, OutputsAreSampled) {
  ReconstructionSize size = small();
  size.kept = 128;
  size.hidden = 7168;
  size.ranks = 1;
  size.all_tokens = 1 << 20;  // of which 8192; a chunk is one block of 128, because 128 x 128 x 7168 float32 are more than 256 MiB
  EXPECT_EQ(reconstruction_memory(size).output_grams, 4.0 * 8193 * (128 * 128 + 128 + 7168 + 2) + 4.0 * 128 * (128.0 * 7168 + 7168 + 3));
}

}  // namespace
}  // namespace hcsmoe
