#include "support/lost_pages.h"

#include <gtest/gtest.h>
#include <signal.h>

#include "support/files.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

constexpr size_t pages = 64 * 4096;

/// In a process of its own: the handler ends it.
template <class Touch>
void expect_end(const Touch& touch, const std::string& message) {
  EXPECT_EXIT(touch(), ::testing::ExitedWithCode(2), message);
}

TEST(LostPages, AFileThatIsCutIsNamed) {
  TemporaryFolder folder;
  const auto file = folder / "weights";
  write_text(file, std::string(pages, 'w'));
  const auto touch = [&](int rank, int ranks) {
    report_lost_pages(rank, ranks);
    const MappedFile other(TEST_DATA "/README.md");
    const MappedFile map(file);
    std::filesystem::resize_file(file, 4096);
    volatile std::byte last = map.bytes()[pages - 1];
    static_cast<void>(last);
  };
  expect_end([&] { touch(0, 1); }, "hcsmoe_dist: error: " + file.string() + ": byte 262143 cannot be read any more: the file had 262144 " +
                                       "bytes and now has 4096\n  hint: ");
  write_text(file, std::string(pages, 'w'));
  expect_end([&] { touch(3, 4); }, "hcsmoe_dist: rank 3: error: " + file.string());
}

TEST(LostPages, OtherCausesEndAsBefore) {
  TemporaryFolder folder;
  write_text(folder / "a", "a");
  EXPECT_EXIT(
      {
        report_lost_pages(0, 1);
        ::raise(SIGBUS);
      },
      ::testing::KilledBySignal(SIGBUS), "");
  EXPECT_EXIT(
      {
        report_lost_pages(0, 1);
        { const MappedFile map(folder / "a"); }
        ::raise(SIGBUS);
      },
      ::testing::KilledBySignal(SIGBUS), "");
}

TEST(LostPages, MoreMappingsThanAreKnown) {
  TemporaryFolder folder;
  write_text(folder / "a", "abc");
  std::vector<MappedFile> maps;
  for (int i = 0; i < 5000; ++i) maps.emplace_back(folder / "a");
  EXPECT_EQ(maps.back().bytes().size(), 3u);
  maps.clear();
  const auto file = folder / "b";
  write_text(file, std::string(pages, 'w'));
  expect_end(
      [&] {
        report_lost_pages(0, 1);
        const MappedFile map(file);
        std::filesystem::resize_file(file, 0);
        volatile std::byte first = map.bytes()[0];
        static_cast<void>(first);
      },
      "/b: byte 0 cannot");
}

}  // namespace
}  // namespace hcsmoe
