// The residual streams of several ranks on file, read back by other numbers of ranks; what is damaged, incomplete or of another job.

#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "hcsmoe/error.h"
#include "hcsmoe/resume.h"
#include "support/files.h"
#include "support/host_data.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;

constexpr int64_t D = 3;

/// Row t of tokens first .. first+n holds t*D, t*D+1, t*D+2; the compressed stream half a unit more.
ResidualStreams rows(int64_t first, int64_t n, bool compressed = true) {
  const at::Tensor original = at::arange(first * D, (first + n) * D, at::kFloat).reshape({n, D});
  return {first, original, compressed ? original.add(0.5) : at::Tensor()};
}

class Streams : public testing::Test {
 protected:
  Streams() : work_(fs::temp_directory_path() / ("hcsmoe_streams_" + std::to_string(::getpid()))) {
    fs::remove_all(work_);
    make_folder(resume_folder(work_));
  }
  ~Streams() override { fs::remove_all(work_); }
  std::vector<int64_t> saved(const std::string& job = "job") const { return saved_layers(work_, job, 10); }
  void save(int64_t layer, int64_t first, int64_t n, const std::string& job = "job") { save_streams(work_, layer, job, rows(first, n)); }
  fs::path only_file() const {
    EXPECT_EQ(std::distance(fs::directory_iterator(resume_folder(work_)), {}), 1);
    return fs::directory_iterator(resume_folder(work_))->path();
  }
  fs::path work_;
};

TEST_F(Streams, AreReadByAnyNumberOfRanks) {
  save(4, 0, 3);
  save(4, 3, 5);
  EXPECT_TRUE(saved().empty()) << "tokens 8 and 9 are missing";
  save(4, 8, 2);
  ASSERT_EQ(saved(), std::vector<int64_t>{4});
  for (int64_t first = 0; first <= 10; ++first) {
    for (int64_t n = 1; first + n <= 10; ++n) {
      const ResidualStreams found = load_streams(work_, 4, "job", first, n), expected = rows(first, n);
      EXPECT_EQ(found.first_token, first);
      EXPECT_TRUE(found.original.equal(expected.original)) << first << " " << n;
      EXPECT_TRUE(found.compressed.equal(expected.compressed)) << first << " " << n;
    }
  }
}

TEST_F(Streams, OfTwoRunsTogetherCoverALayer) {
  save(0, 0, 5);  // of two ranks, the second was killed
  save(0, 0, 4);  // of three, none was
  save(0, 4, 3);
  save(0, 7, 3);
  ASSERT_EQ(saved(), std::vector<int64_t>{0});
  EXPECT_TRUE(load_streams(work_, 0, "job", 2, 7).original.equal(rows(2, 7).original));
}

TEST_F(Streams, WithoutACompressedStream) {
  save_streams(work_, 1, "job", rows(0, 10, false));
  const ResidualStreams found = load_streams(work_, 1, "job", 5, 5);
  EXPECT_FALSE(found.compressed.defined());
  EXPECT_TRUE(found.original.equal(rows(5, 5).original));
}

TEST_F(Streams, TheLastWholeLayerComesFirst) {
  save(2, 0, 10);
  save(3, 0, 10);
  save(4, 0, 9);
  EXPECT_EQ(saved(), (std::vector<int64_t>{3, 2}));
  drop_streams(work_, 3);
  EXPECT_EQ(saved(), std::vector<int64_t>{3});
  drop_streams(work_);
  EXPECT_TRUE(fs::is_empty(resume_folder(work_)));
}

TEST_F(Streams, OfAnotherJobDoNotCount) {
  save(0, 0, 10, "another");
  EXPECT_TRUE(saved().empty());
  EXPECT_EQ(saved("another"), std::vector<int64_t>{0});
  EXPECT_THROW(load_streams(work_, 0, "job", 0, 10), UserError);
}

TEST_F(Streams, OfARankWithoutTokensAreNothing) {
  save(0, 5, 0);
  EXPECT_TRUE(fs::is_empty(resume_folder(work_)));
}

TEST_F(Streams, ATemporaryFileDoesNotCount) {
  save(0, 0, 10);
  fs::rename(only_file(), only_file().string() + ".tmp");
  EXPECT_TRUE(saved().empty());
}

TEST_F(Streams, AFileThatIsNotWhatItsNameSaysDoesNotCount) {
  save(0, 0, 10);
  fs::rename(only_file(), resume_folder(work_) / "streams_0001_0_10.h5");
  EXPECT_TRUE(saved().empty());
  fs::resize_file(only_file(), fs::file_size(only_file()) / 2);
  EXPECT_TRUE(saved().empty());
}

TEST_F(Streams, ADamagedRowIsFoundWhenItIsRead) {
  save(0, 0, 10);
  std::string bytes = read_file(only_file(), 1'000'000);
  const float wanted = 13;
  const auto at = bytes.find(std::string(reinterpret_cast<const char*>(&wanted), sizeof wanted));
  ASSERT_NE(at, std::string::npos);
  bytes[at] ^= 1;
  std::ofstream(only_file(), std::ios::binary) << bytes;
  EXPECT_THROW(load_streams(work_, 0, "job", 0, 10), UserError);
  EXPECT_THROW(load_streams(work_, 0, "job", 0, 1), UserError) << "the checksum is of the whole dataset";
}

}  // namespace
}  // namespace hcsmoe
