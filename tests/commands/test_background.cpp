#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

#include "commands/background.h"

namespace hcsmoe {
namespace {

TEST(Background, RunsTasksInOrder) {
  std::vector<int> order;
  Background background;
  for (int i = 0; i < 50; ++i) background.submit([&order, i] { order.push_back(i); });
  background.wait();
  ASSERT_EQ(order.size(), 50u);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
}

TEST(Background, TheFirstErrorIsThrownAndEndsTheRest) {
  std::atomic<int> ran = 0;
  Background background;
  background.submit([] { throw std::runtime_error("disk full"); });
  for (int i = 0; i < 20; ++i) background.submit([&ran] { ++ran; });  // must not block either
  try {
    background.wait();
    FAIL() << "no error";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "disk full");
  }
  EXPECT_THROW(background.check(), std::runtime_error);
  EXPECT_EQ(ran, 0);
}

TEST(Background, WaitsForWhatRunsWhenItGoes) {
  std::atomic<bool> done = false;
  {
    Background background;
    std::atomic<bool> started = false;
    background.submit([&] {
      started = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      done = true;
    });
    while (!started) std::this_thread::yield();
  }
  EXPECT_TRUE(done);
}

}  // namespace
}  // namespace hcsmoe
