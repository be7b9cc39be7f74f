#include "support/checksums.h"

#include <gtest/gtest.h>

#include "hcsmoe/error.h"
#include "support/files.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

const std::string one(32, '1'), two = "0123456789abcdef0123456789abcdef";

TEST(Checksums, LinesComeBack) {
  EXPECT_EQ(checksum_lines({{"b c.txt", two}, {"a", one}}), one + "  a\n" + two + "  b c.txt\n");
  const std::vector<FileChecksum> expected = {{"a", one}, {"b c.txt", two}};
  EXPECT_EQ(parse_checksum_lines(one + "  a\n" + two + "  b c.txt\n", "x"), expected);
  EXPECT_EQ(parse_checksum_lines(one + "  a\n" + two + "  b c.txt", "x"), expected);  // without the last line break
  EXPECT_TRUE(parse_checksum_lines("", "x").empty());
  EXPECT_THROW(checksum_lines({{"a/b", one}}), Error);
  EXPECT_THROW(checksum_lines({{"a\nb", one}}), Error);
  EXPECT_THROW(checksum_lines({{"a", "1234"}}), Error);
}

TEST(Checksums, OtherLinesAreRefused) {
  for (const std::string& line : {one + " a", one + "  ", one, one.substr(1) + "  a", std::string(31, '1') + "G  a", one + "  ../a",
                                  one + "  /etc/passwd", one + "  ..", one + "  a\\b", std::string("\n")}) {
    expect_error<UserError>([&] { parse_checksum_lines(two + "  first\n" + line, "sums"); }, {"sums:2: ", "hint"});
  }
  expect_error<UserError>([&] { parse_checksum_lines(one + "  a\n" + two + "  a\n", "sums"); }, {"sums:2: ", "twice"});
}

TEST(Checksums, OfAFile) {
  TemporaryFolder folder;
  std::string content;
  for (size_t i = 0; content.size() < 9'000'000; ++i) content += std::to_string(i);  // more than a piece
  write_text(folder / "a", content);
  Hasher hasher;
  hasher.add(content);
  EXPECT_EQ(file_checksum(folder / "a"), hasher.hex());
  write_text(folder / "empty", "");
  EXPECT_EQ(file_checksum(folder / "empty"), "99aa06d3014798d86001c324468d497f");  // as xxhsum -H2 says
  expect_error<UserError>([&] { file_checksum(folder / "none"); }, {"none"});
}

}  // namespace
}  // namespace hcsmoe
