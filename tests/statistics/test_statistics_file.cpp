#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <limits>

#include "hcsmoe/error.h"
#include "hcsmoe/statistics.h"
#include "support/hdf5_file.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;

constexpr int64_t experts = 5, hidden = 7, tokens = 1000, sample = 3, pairs = experts * (experts + 1) / 2;
const StatisticsOrigin origin{"0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210", "bfloat16"};

at::Tensor values(std::vector<int64_t> shape, double step) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return at::arange(count, at::kDouble).mul(step).sub(3.25).reshape(shape);
}

ExpertStatistics example() {
  ExpertStatistics statistics;
  statistics.layer = 11;
  statistics.experts = experts;
  statistics.tokens = tokens;
  statistics.routed_count = at::arange(experts, at::kLong).mul(250);  // 0 to all tokens: both ends are valid
  statistics.routed_weight_sum = values({experts}, 0.1);
  statistics.router_probability_sum = values({experts}, 1e-300);
  statistics.output_sum = values({experts, hidden}, 1.0 / 3);
  statistics.routed_output_norm_sum = values({experts}, 1e17);
  statistics.weighted_output_norm_sum = values({experts}, 0.7);
  statistics.router_logit_sum = values({experts}, -0.3);
  statistics.router_logit_gram = values({experts, experts}, 0.9);
  statistics.sample_input = values({sample, hidden}, 0.3).to(at::kFloat);
  statistics.sample_logits = values({sample, experts}, 0.2).to(at::kFloat);
  statistics.token_output_gram = values({sample, pairs}, 1e20).to(at::kFloat);
  statistics.output_cka = values({experts, experts}, 0.01);
  statistics.weight_gram = values({experts, experts}, 1e3);
  statistics.weight_cka = values({experts, experts}, 0.02);
  return statistics;
}

void expect_equal(const at::Tensor& a, const at::Tensor& b) {
  ASSERT_EQ(a.defined(), b.defined());
  if (!a.defined()) return;
  EXPECT_EQ(a.scalar_type(), b.scalar_type());
  EXPECT_TRUE(a.equal(b));
}

void expect_equal(const ExpertStatistics& a, const ExpertStatistics& b) {
  EXPECT_EQ(a.layer, b.layer);
  EXPECT_EQ(a.experts, b.experts);
  EXPECT_EQ(a.tokens, b.tokens);
  expect_equal(a.routed_count, b.routed_count);
  expect_equal(a.routed_weight_sum, b.routed_weight_sum);
  expect_equal(a.router_probability_sum, b.router_probability_sum);
  expect_equal(a.output_sum, b.output_sum);
  expect_equal(a.routed_output_norm_sum, b.routed_output_norm_sum);
  expect_equal(a.weighted_output_norm_sum, b.weighted_output_norm_sum);
  expect_equal(a.router_logit_sum, b.router_logit_sum);
  expect_equal(a.router_logit_gram, b.router_logit_gram);
  expect_equal(a.sample_input, b.sample_input);
  expect_equal(a.sample_logits, b.sample_logits);
  expect_equal(a.token_output_gram, b.token_output_gram);
  expect_equal(a.output_cka, b.output_cka);
  expect_equal(a.weight_gram, b.weight_gram);
  expect_equal(a.weight_cka, b.weight_cka);
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

/// That loading is refused with a message that holds the file and the text.
void expect_refused(const fs::path& file, const std::string& text) {
  const std::string error = error_of([&] { load_statistics(file); });
  EXPECT_NE(error.find(file.string()), std::string::npos) << error;
  EXPECT_NE(error.find(text), std::string::npos) << error;
}

/// A file with one dataset, as save_statistics would never write it.
void write_raw(const fs::path& file, int64_t experts_attribute, const std::string& name, const std::string& dtype,
               const std::vector<int64_t>& shape, size_t bytes) {
  Hdf5Writer writer(file, "hcsmoe-statistics/1");
  writer.attribute("layer", int64_t{0});
  writer.attribute("experts", experts_attribute);
  writer.attribute("tokens", tokens);
  writer.attribute("checkpoint", origin.checkpoint);
  writer.attribute("calibration", origin.calibration);
  writer.attribute("dtype", origin.dtype);
  writer.dataset(name, dtype, shape, std::vector<std::byte>(bytes));
  writer.finish();
}

TEST(StatisticsFile, Names) {
  EXPECT_EQ(statistics_file("work", 3), fs::path("work/statistics/layer_0003.h5"));
  EXPECT_EQ(statistics_file("work", 12345), fs::path("work/statistics/layer_12345.h5"));
}

TEST(StatisticsFile, WhatIsSavedIsLoaded) {
  TemporaryFolder folder;
  const fs::path file = statistics_file(folder.path(), 11);
  save_statistics(file, example(), origin);
  StatisticsOrigin loaded_origin;
  expect_equal(load_statistics(file, &loaded_origin), example());
  EXPECT_TRUE(loaded_origin == origin);
  expect_equal(load_statistics(file), example());
}

TEST(StatisticsFile, WhatWasNotCollectedStaysUndefined) {
  TemporaryFolder folder;
  const fs::path file = folder / "layer_0011.h5";
  ExpertStatistics some = example();
  some.routed_output_norm_sum = at::Tensor();
  some.router_logit_gram = at::Tensor();
  some.token_output_gram = at::Tensor();
  some.weight_cka = at::Tensor();
  save_statistics(file, some, origin);
  expect_equal(load_statistics(file), some);
  ExpertStatistics none;
  none.experts = experts;
  save_statistics(file, none, origin);  // also: over an older file
  expect_equal(load_statistics(file), none);
}

TEST(StatisticsFile, StridedTensors) {
  TemporaryFolder folder;
  ExpertStatistics statistics = example();
  statistics.output_sum = values({hidden, experts}, 0.5).t();
  save_statistics(folder / "a.h5", statistics, origin);
  expect_equal(load_statistics(folder / "a.h5"), statistics);
}

TEST(StatisticSets, KnowWhatIsThere) {
  EXPECT_EQ(collected(example()), StatisticSet::all());
  ExpertStatistics some = example();
  some.sample_logits = some.output_sum = some.weight_gram = at::Tensor();  // token_output_gram is of no use without the logits
  EXPECT_EQ(collected(some), (StatisticSet{Statistic::sample_input, Statistic::output_cka, Statistic::weight_cka}));
  EXPECT_EQ(StatisticSet::all().without(collected(some)).names(), "output_sum, token_output_gram, weight_gram");
  EXPECT_TRUE(collected(ExpertStatistics()).empty());
  EXPECT_EQ(StatisticSet::of_bits(collected(some).bits()), collected(some));
}

TEST(StatisticsFile, SaveRefusesWhatDoesNotFit) {
  TemporaryFolder folder;
  ExpertStatistics statistics = example();
  statistics.token_output_gram = values({sample + 1, pairs}, 1).to(at::kFloat);  // of another sample than sample_input
  EXPECT_THROW(save_statistics(folder / "a.h5", statistics, origin), Error);
  statistics = example();
  statistics.output_sum = values({experts + 1, hidden}, 1);
  EXPECT_THROW(save_statistics(folder / "a.h5", statistics, origin), Error);
  statistics = example();
  statistics.output_sum = statistics.output_sum.to(at::kFloat);
  EXPECT_THROW(save_statistics(folder / "a.h5", statistics, origin), Error);
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(StatisticsFile, ImpossibleValuesAreRefused) {
  TemporaryFolder folder;
  const fs::path file = folder / "a.h5";
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), -HUGE_VAL}) {
    ExpertStatistics statistics = example();
    statistics.output_sum.index_put_({at::full({1}, 2, at::kLong), at::full({1}, 3, at::kLong)}, at::full({1}, bad, at::kDouble));
    save_statistics(file, statistics, origin);
    expect_refused(file, "output_sum: value 17 is not finite");
  }
  ExpertStatistics infinite = example();
  infinite.sample_logits.index_put_({at::full({1}, 1, at::kLong), at::full({1}, 2, at::kLong)}, at::full({1}, HUGE_VAL, at::kFloat));
  save_statistics(file, infinite, origin);
  expect_refused(file, "sample_logits: value 7 is not finite");
  for (const int64_t bad : {int64_t{-1}, tokens + 1, std::numeric_limits<int64_t>::max()}) {
    ExpertStatistics statistics = example();
    statistics.routed_count.index_put_({at::full({1}, 4, at::kLong)}, at::full({1}, bad, at::kLong));
    save_statistics(file, statistics, origin);
    expect_refused(file, "routed_count[4] is " + std::to_string(bad));
  }
}

TEST(StatisticsFile, ShapesThatDoNotFitAreRefused) {
  TemporaryFolder folder;
  const fs::path file = folder / "a.h5";
  write_raw(file, experts, "routed_count", "I64", {experts + 1}, 8 * (experts + 1));
  expect_refused(file, "routed_count is I64 [6], expected I64 [5]");
  write_raw(file, experts, "routed_count", "F64", {experts}, 8 * experts);
  expect_refused(file, "routed_count is F64 [5], expected I64 [5]");
  write_raw(file, experts, "output_sum", "F64", {experts}, 8 * experts);
  expect_refused(file, "expected F64 [5, hidden size]");
  write_raw(file, experts, "output_sum", "F64", {experts, 0}, 0);
  expect_refused(file, "expected F64 [5, hidden size]");
  write_raw(file, experts, "router_logit_gram", "F64", {experts, hidden}, 8 * experts * hidden);
  expect_refused(file, "router_logit_gram is F64 [5, 7], expected F64 [5, 5]");
  write_raw(file, experts, "token_output_gram", "F32", {sample, pairs + 1}, 4 * sample * (pairs + 1));
  expect_refused(file, "token_output_gram is F32 [3, 16], expected F32 [sampled tokens, 15]");
  write_raw(file, experts, "sample_input", "F64", {sample, hidden}, 8 * sample * hidden);
  expect_refused(file, "sample_input is F64 [3, 7], expected F32 [sampled tokens, hidden size]");
  write_raw(file, 0, "routed_count", "I64", {0}, 0);
  expect_refused(file, "experts 0");
  write_raw(file, experts, "of_a_later_version", "F64", {3}, 24);
  EXPECT_EQ(load_statistics(file).experts, experts);
}

TEST(StatisticsFile, DamageIsFound) {
  TemporaryFolder folder;
  const fs::path file = folder / "a.h5";
  save_statistics(file, example(), origin);
  const uint64_t offset = Hdf5Reader(file, "hcsmoe-statistics/1").info("router_logit_sum").offset;
  {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(static_cast<std::streamoff>(offset));
    stream.put('\x55');
  }
  expect_refused(file, "router_logit_sum");
  fs::resize_file(file, fs::file_size(file) / 2);
  EXPECT_NE(error_of([&] { load_statistics(file); }).find(file.string()), std::string::npos);
  EXPECT_NE(error_of([&] { load_statistics(folder / "none.h5"); }).find("none.h5"), std::string::npos);
  Hdf5Writer(file, "hcsmoe-shard/1").finish();
  expect_refused(file, "hcsmoe-statistics/1");
}

}  // namespace
}  // namespace hcsmoe
