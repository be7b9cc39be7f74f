// Collectives and shared errors, on every number of ranks that ctest runs this with.

#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <limits>
#include <new>
#include <numeric>
#include <optional>

#include "hcsmoe/ranks.h"

using namespace hcsmoe;

namespace {

class RanksTest : public testing::Test {
 protected:
  Ranks ranks{MPI_COMM_WORLD};
  int last() const { return ranks.size() - 1; }
};

std::optional<CollectiveError> shared_error(const std::function<void()>& body) {
  try {
    body();
  } catch (const CollectiveError& error) {
    return error;
  }
  return std::nullopt;
}

}  // namespace

TEST_F(RanksTest, NamesWhatItHolds) {
  int rank = -1, size = -1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  EXPECT_EQ(ranks.rank(), rank);
  EXPECT_EQ(ranks.size(), size);
  EXPECT_EQ(ranks.is_root(), rank == 0);
  EXPECT_EQ(ranks.local_rank(), rank);  // these tests run on one node
  EXPECT_EQ(ranks.local_size(), size);
  EXPECT_EQ(ranks.owner_of(0), 0);
  EXPECT_EQ(ranks.owner_of(size), 0);
  EXPECT_EQ(ranks.owner_of(2 * size - 1), last());
}

TEST_F(RanksTest, OneObjectDoesNotDisturbAnother) {
  for (int i = 0; i < 20; ++i) {
    const Ranks other(MPI_COMM_WORLD);
    other.barrier();
  }
  const Ranks other(MPI_COMM_WORLD);
  std::string mine = "a" + std::to_string(ranks.rank()), others = "b" + std::to_string(ranks.rank());
  ranks.broadcast(mine, 0);
  other.broadcast(others, last());
  EXPECT_EQ(mine, "a0");
  EXPECT_EQ(others, "b" + std::to_string(last()));
}

TEST_F(RanksTest, AllReduceSum) {
  const int64_t rank = ranks.rank(), size = ranks.size();
  std::vector<int64_t> values = {2 * rank + 1, 2 * rank + 2, -rank, int64_t{1} << 58};
  ranks.all_reduce_sum(values);
  EXPECT_EQ(values, (std::vector<int64_t>{size * size, size * size + size, -size * (size - 1) / 2, size * (int64_t{1} << 58)}));
  ranks.all_reduce_sum({});
}

TEST_F(RanksTest, SumsLongerThanAPiece) {
  const size_t length = (size_t{1} << 22) + 5;
  std::vector<int64_t> values(length), sums;
  const int64_t size = ranks.size(), of_ranks = size * (size - 1) / 2;
  const auto expected = [&](size_t i) { return size * static_cast<int64_t>(i) + of_ranks; };
  for (int root : {-1, last()}) {  // -1: to all
    std::iota(values.begin(), values.end(), ranks.rank());
    root < 0 ? ranks.all_reduce_sum(values) : ranks.reduce_sum(values, root);
    if (root >= 0 && ranks.rank() != root) continue;
    size_t wrong = 0;
    for (size_t i = 0; i < length; ++i) wrong += values[i] != expected(i);
    EXPECT_EQ(wrong, 0u) << "root " << root;
  }
}

TEST_F(RanksTest, ReduceSumToEachRoot) {
  for (int root = 0; root < ranks.size(); ++root) {
    std::vector<int64_t> values = {1, ranks.rank()};
    ranks.reduce_sum(values, root);
    if (ranks.rank() == root) {
      EXPECT_EQ(values, (std::vector<int64_t>{ranks.size(), ranks.size() * (ranks.size() - 1) / 2}));
    }
  }
}

TEST_F(RanksTest, AllReduceMax) {
  EXPECT_EQ(ranks.all_reduce_max(ranks.rank()), last());
  EXPECT_EQ(ranks.all_reduce_max(-ranks.rank() - 5), -5);
  EXPECT_EQ(ranks.all_reduce_max(std::numeric_limits<int64_t>::min()), std::numeric_limits<int64_t>::min());
}

TEST_F(RanksTest, BroadcastFromEachRoot) {
  for (int root = 0; root < ranks.size(); ++root) {
    std::string text = ranks.rank() == root ? std::string("zero \0 byte", 11) : std::string(static_cast<size_t>(ranks.rank()), 'x');
    ranks.broadcast(text, root);
    EXPECT_EQ(text, std::string("zero \0 byte", 11));
    text = ranks.rank() == root ? "" : "not empty";
    ranks.broadcast(text, root);
    EXPECT_EQ(text, "");
  }
}

TEST_F(RanksTest, BytesLongerThanAPiece) {
  const size_t length = (size_t{1} << 25) + 3;
  const auto pattern = [&](int rank) {
    std::string bytes(length, '\0');
    for (size_t i = 0; i < length; ++i) bytes[i] = static_cast<char>(i * 7 + i / 1000 + static_cast<size_t>(rank));
    return bytes;
  };
  std::string bytes = ranks.rank() == last() ? pattern(last()) : "";
  ranks.broadcast(bytes, last());
  EXPECT_TRUE(bytes == pattern(last()));

  const std::vector<std::string> all = ranks.gather(pattern(ranks.rank()), 0);
  ASSERT_EQ(all.size(), ranks.is_root() ? static_cast<size_t>(ranks.size()) : 0u);
  for (size_t rank = 0; rank < all.size(); ++rank) EXPECT_TRUE(all[rank] == pattern(static_cast<int>(rank))) << rank;
}

TEST_F(RanksTest, TensorsOfTheHost) {
  const int64_t rank = ranks.rank(), size = ranks.size();
  const at::Tensor sums = at::full({2, 3}, rank + 1, at::TensorOptions().dtype(at::kLong));
  const at::Tensor others = at::full({4}, -1, at::TensorOptions().dtype(at::kLong));
  ranks.all_reduce_sums(std::vector<at::Tensor>{sums, others});
  EXPECT_TRUE(sums.eq(size * (size + 1) / 2).all().item<bool>());
  EXPECT_TRUE(others.eq(-size).all().item<bool>());
  const at::Tensor to_last = at::full({5}, rank, at::TensorOptions().dtype(at::kLong));
  ranks.reduce_sum(to_last, last());
  if (rank == last()) {
    EXPECT_TRUE(to_last.eq(size * (size - 1) / 2).all().item<bool>());
  }
  const at::Tensor weights = at::full({3, 2}, rank, at::TensorOptions().dtype(at::kBFloat16));
  ranks.broadcast(weights, last());
  EXPECT_TRUE(weights.eq(last()).all().item<bool>());

  // Refused on every number of ranks, so that one rank finds what several would stumble over.
  EXPECT_THROW(ranks.reduce_sum(weights, 0), Error);
  EXPECT_THROW(ranks.broadcast(weights.t(), 0), Error);
  EXPECT_THROW(ranks.broadcast(at::Tensor(), 0), Error);
}

TEST_F(RanksTest, WhatDiffersBetweenRanksIsNamed) {
  ranks.require_same("the model", "a\nb\n");
  ranks.require_same("the model", "");
  if (ranks.size() == 1) return;
  const auto differ = [&](const std::string& here) {
    const auto error = shared_error([&] { ranks.require_same("the model", here); });
    EXPECT_TRUE(error);
    return error ? std::string(error->what()) : "";
  };
  const std::string who = "rank " + std::to_string(last()) + ": the model differs between ranks: here it has ";
  const bool is_last = ranks.rank() == last();
  std::string text = differ(is_last ? "a\nb [3, 4]\nc\n" : "a\nb [4, 3]\nc\n");
  EXPECT_NE(text.find(who + "b [3, 4], on rank 0 b [4, 3]"), std::string::npos) << text;
  text = differ(is_last ? "a\n" : "a\nb\n");
  EXPECT_NE(text.find(who + "nothing more, on rank 0 b"), std::string::npos) << text;
  ranks.barrier();  // still in step
}

TEST_F(RanksTest, Gather) {
  for (int root = 0; root < ranks.size(); ++root) {
    const std::string mine = ranks.rank() % 2 ? std::string() : std::string(static_cast<size_t>(ranks.rank() + 1), 'r');
    const std::vector<std::string> all = ranks.gather(mine, root);
    if (ranks.rank() != root) {
      EXPECT_TRUE(all.empty());
      continue;
    }
    ASSERT_EQ(all.size(), static_cast<size_t>(ranks.size()));
    for (int rank = 0; rank < ranks.size(); ++rank) {
      EXPECT_EQ(all[static_cast<size_t>(rank)], rank % 2 ? "" : std::string(static_cast<size_t>(rank + 1), 'r'));
    }
  }
}

TEST_F(RanksTest, OnRootRunsOnce) {
  int64_t runs = 0;
  ranks.on_root([&] { ++runs; });
  EXPECT_EQ(runs, ranks.is_root());
  ranks.all_reduce_sum({&runs, 1});
  EXPECT_EQ(runs, 1);
}

TEST_F(RanksTest, OnRootThrowsOnAllRanks) {
  const auto user = shared_error([&] { ranks.on_root([] { throw UserError("no file x", "make it"); }); });
  ASSERT_TRUE(user);
  EXPECT_STREQ(user->what(), "no file x\n  hint: make it");
  EXPECT_EQ(user->exit_code(), ExitCode::user);
  EXPECT_TRUE(user->collective());

  const auto failure = shared_error([&] { ranks.on_root([] { throw Error("broken"); }); });
  ASSERT_TRUE(failure);
  EXPECT_STREQ(failure->what(), "broken");
  EXPECT_EQ(failure->exit_code(), ExitCode::failure);

  const auto memory = shared_error([&] { ranks.on_root([] { throw std::bad_alloc(); }); });
  ASSERT_TRUE(memory);
  EXPECT_STREQ(memory->what(), "out of memory");
  const auto other = shared_error([&] { ranks.on_root([] { throw 3; }); });
  ASSERT_TRUE(other);
  EXPECT_EQ(other->exit_code(), ExitCode::failure);
}

TEST_F(RanksTest, OnAllThrowsTheLowestRanksError) {
  int64_t runs = 0;
  ranks.on_all([&] { ++runs; });
  ranks.all_reduce_sum({&runs, 1});
  EXPECT_EQ(runs, ranks.size());

  for (int lowest = 0; lowest < ranks.size(); ++lowest) {
    const auto error = shared_error([&] {
      ranks.on_all([&] {
        const std::string who = std::to_string(ranks.rank());
        if (ranks.rank() == lowest) throw UserError("no file " + who);
        if (ranks.rank() > lowest) throw Error("broken " + who);
      });
    });
    ASSERT_TRUE(error) << lowest;
    const std::string text = "no file " + std::to_string(lowest);
    EXPECT_EQ(error->what(), lowest == 0 ? text : "rank " + std::to_string(lowest) + ": " + text);
    EXPECT_EQ(error->exit_code(), ExitCode::user);
  }
}

TEST_F(RanksTest, SharedErrorsStayAsTheyAre) {
  const auto error = shared_error([&] {
    ranks.on_all([&] {
      ranks.on_all([&] {
        if (ranks.rank() == last()) throw UserError("full");
      });
    });
  });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->what(), last() == 0 ? std::string("full") : "rank " + std::to_string(last()) + ": full");
  EXPECT_EQ(error->exit_code(), ExitCode::user);
  ranks.barrier();  // still in step
}
