#include "hcsmoe/device_memory.h"

#include <gtest/gtest.h>

#include "hcsmoe/error.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

/// Mixtral-8x7B in bfloat16, 4 sequences of 2048 tokens a rank. A layer: 8 experts of 3 x 4096 x 14336, attention of 4096 x 12288 (queries
/// and outputs of 4096, keys and values of 1024 channels), two norms, a router.
DeviceSizes mixtral() {
  DeviceSizes sizes;
  sizes.layer_bytes = 2 * (int64_t{8} * 3 * 4096 * 14336 + int64_t{4096} * 10240 + 2 * 4096 + 8 * 4096);
  sizes.hidden = 4096;
  sizes.intermediate = sizes.expert_intermediate = 14336;
  sizes.experts = 8;
  sizes.attention_channels = 10240;
  sizes.sequences = 4;
  sizes.length = 2048;
  sizes.compute_bytes = 2;
  return sizes;
}

TEST(DeviceMemory, PartsByHand) {
  const DeviceSizes sizes = mixtral();
  const DeviceMemory memory = device_memory(sizes);
  EXPECT_DOUBLE_EQ(memory.weights, 2 * static_cast<double>(sizes.layer_bytes));
  EXPECT_NEAR(memory.weights, 5.8e9, 0.05e9);
  EXPECT_DOUBLE_EQ(memory.converted, 0);
  const double N = 4 * 2048;
  EXPECT_DOUBLE_EQ(memory.tokens, N * 4096 * (4 + 4 + 4 + 2) + N * 14336 * 2);
  EXPECT_GE(memory.blocks, N * (2 * 14336 + 4096) * 2);
  EXPECT_GE(memory.sums, 8.0 * 8 * (14336 + 8));
  EXPECT_DOUBLE_EQ(memory.total(), memory.weights + memory.converted + memory.tokens + memory.blocks + memory.sums + memory.libraries);
}

TEST(DeviceMemory, GrowsWithWhatItHolds) {
  const double before = device_memory(mixtral()).total();
  DeviceSizes more = mixtral();
  more.converts = true;
  more.compute_bytes = 4;
  EXPECT_GE(device_memory(more).total(), before + 4.0 * 4096 * (10240 + 3 * 14336));
  more = mixtral();
  more.propagates = true;
  EXPECT_GE(device_memory(more).weights, 2 * device_memory(mixtral()).weights);
  more = mixtral();
  more.sequences *= 64;
  const double tokens = 63.0 * 4 * 2048;
  EXPECT_GE(device_memory(more).total() - before, tokens * (14 * 4096 + 2 * 14336));
}

TEST(DeviceMemory, WhatFitsIsNotRefusedAndTheAdviceFits) {
  DeviceSizes sizes = mixtral();
  check_fits(sizes, 40e9, 8);
  check_fits(sizes, device_memory(sizes).total(), 8);
  sizes.sequences = 1000;
  try {
    check_fits(sizes, 40e9, 8);
    FAIL() << "not refused";
  } catch (const UserError& error) {
    const std::string what = error.what();
    EXPECT_NE(what.find("a GPU of 40.0 GB is too small"), std::string::npos) << what;
    const std::string before = "calibration.sequences of at most ", then = "fit 8 ranks, or start ";
    const int64_t most = std::stoll(what.substr(what.find(before) + before.size())),
                  ranks = std::stoll(what.substr(what.find(then) + then.size()));
    EXPECT_EQ(most % 8, 0);
    sizes.sequences = most / 8;
    check_fits(sizes, 40e9, 8);
    ++sizes.sequences;
    EXPECT_THROW(check_fits(sizes, 40e9, 8), UserError) << "more would have fit";
    sizes.sequences = (8000 + ranks - 1) / ranks;
    check_fits(sizes, 40e9, static_cast<int>(ranks));
  }
}

TEST(DeviceMemory, WhatCanNeverFitSaysSo) {
  DeviceSizes sizes = mixtral();
  expect_error<UserError>([&] { check_fits(sizes, 6e9, 2); }, {"a GPU of 6.0 GB", "even one sequence a rank", "device.type: cpu"});
  sizes.propagates = true;
  expect_error<UserError>([&] { check_fits(sizes, 6e9, 2); }, {"compression.propagate: original"});
}

}  // namespace
}  // namespace hcsmoe
