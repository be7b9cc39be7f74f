// The merger of devices gives the bytes of the loops. It runs on the device of host_device.h.

#include "merging/merger.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "hcsmoe/error.h"
#include "host_device.h"

namespace hcsmoe {
namespace {

constexpr int64_t F = 9, D = 13;

/// Members with values of all sizes, zeros of both signs, and values close to the largest.
struct Members {
  Members(const std::string& type, size_t count, uint64_t seed) : dtype(dtype_from_name(type)) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> draw(0, 1);
    for (size_t m = 0; m < count; ++m) {
      std::vector<float> drawn;
      for (int64_t i = 0; i < F * D; ++i) drawn.push_back(draw(random) * std::ldexp(1.0f, static_cast<int>(random() % 20) - 10));
      drawn[m] = m % 2 == 0 ? 0.0f : -0.0f;
      drawn[m + 5] = 60000;
      std::string stored;
      for (const float value : drawn) append(stored, value);
      bytes.push_back(stored);
    }
    for (const std::string& member : bytes) spans.push_back(std::as_bytes(std::span(member)));
  }

  void append(std::string& stored, float value) const {
    const auto put = [&](const auto& element) { stored.append(reinterpret_cast<const char*>(&element), sizeof element); };
    if (dtype.name == "F32") put(value);
    if (dtype.name == "BF16") put(c10::BFloat16(value));
    if (dtype.name == "F16") put(c10::Half(value));
  }

  DType dtype;
  std::vector<std::string> bytes;
  MemberBytes spans;
};

class MergerOfType : public testing::TestWithParam<const char*> {
 protected:
  const std::unique_ptr<Merger> loops = merger_on(at::kCPU), device = merger_on(host_device);

  template <class Merge>
  void expect_same(const Members& members, const Merge& merge) {
    std::string expected(members.bytes[0].size(), '1'), found(members.bytes[0].size(), '2');
    merge(*loops, std::as_writable_bytes(std::span(expected)));
    merge(*device, std::as_writable_bytes(std::span(found)));
    EXPECT_EQ(found, expected);
  }
};
INSTANTIATE_TEST_SUITE_P(, MergerOfType, testing::Values("F32", "BF16", "F16"), [](const auto& test) { return std::string(test.param); });

TEST_P(MergerOfType, Mean) {
  const Members members(GetParam(), 4, 1);
  for (const std::vector<double>& weights : std::vector<std::vector<double>>{
           {0.25, 0.25, 0.25, 0.25}, {0.1, 0.7, 0, 0.2}, {0, 0, 1, 0}, {0, 0.3, 0, 0}, {1, 0.5, 0, 0}, {1.0 / 3, 1.0 / 3, 0, 1.0 / 3}}) {
    expect_same(members, [&](const Merger& merger, std::span<std::byte> out) { merger.mean(members.dtype, members.spans, weights, out); });
  }
}

TEST_P(MergerOfType, RowsAndColumns) {
  const Members members(GetParam(), 3, 2);
  std::mt19937_64 random(3);
  for (int repeat = 0; repeat < 20; ++repeat) {
    // Every merged unit has one to five parts of any members, in their order.
    UnitParts units;
    units.first = {0};
    for (int64_t u = 0; u < F; ++u) {
      std::vector<std::pair<int32_t, int32_t>> parts;
      for (uint64_t n = 1 + random() % 5; n > 0; --n) parts.emplace_back(random() % 3, random() % F);
      std::sort(parts.begin(), parts.end());
      for (const auto& [member, unit] : parts) {
        units.parts.push_back({member, unit, parts.size() == 1 ? 1.0f : 1.0f / static_cast<float>(1 + random() % 9)});
      }
      units.first.push_back(units.parts.size());
    }
    expect_same(members, [&](const Merger& merger, std::span<std::byte> out) { merger.rows(members.dtype, members.spans, units, out); });
    expect_same(members, [&](const Merger& merger, std::span<std::byte> out) { merger.columns(members.dtype, members.spans, units, out); });
  }
}

TEST(Merger, RefusesWhatDoesNotFit) {
  const Members members("F32", 2, 4);
  std::string out(members.bytes[0].size(), '0');
  const auto to = std::as_writable_bytes(std::span(out));
  for (const at::Device where : {at::Device(at::kCPU), host_device}) {
    const std::unique_ptr<Merger> merger = merger_on(where);
    EXPECT_THROW(merger->mean(members.dtype, members.spans, {1}, to), Error);
    EXPECT_THROW(merger->mean(members.dtype, members.spans, {0, 0}, to), Error);
    EXPECT_THROW(merger->mean(members.dtype, members.spans, {0.5, 0.5}, to.first(to.size() - 4)), Error);
    EXPECT_THROW(merger->mean(dtype_from_name("I32"), members.spans, {0.5, 0.5}, to), UserError);
    EXPECT_THROW(merger->rows(members.dtype, members.spans, UnitParts{{}, {0}}, to), Error);
    EXPECT_THROW(merger->columns(members.dtype, members.spans, UnitParts{{}, {0}}, to), Error);
  }
}

}  // namespace
}  // namespace hcsmoe
