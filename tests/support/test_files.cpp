#include "support/files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <fstream>
#include <random>

#include "hcsmoe/error.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

std::span<const std::byte> as_bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

TEST(File, WritesAtTheEndAndReadsAnywhere) {
  TemporaryFolder folder;
  File file = File::create(folder / "a");
  file.write(as_bytes("hello "));
  file.write(as_bytes("world"));
  EXPECT_EQ(file.size(), 11u);
  std::string out(5, '?');
  file.read_at(6, std::as_writable_bytes(std::span(out)));
  EXPECT_EQ(out, "world");
  file.sync();
  file.close();
  EXPECT_EQ(file.descriptor(), -1);
  EXPECT_EQ(read_file(folder / "a", 11), "hello world");
}

TEST(File, ErrorsNameThePathAndTheReason) {
  TemporaryFolder folder;
  expect_error<UserError>([&] { File::open_read(folder / "none"); }, {(folder / "none").string(), "No such file or directory"});
  expect_error<UserError>([&] { File::create(folder / "none/file"); }, {"none/file", "No such file or directory"});
  expect_error<UserError>([&] { File::open_read(folder.path()); }, {folder.path().string(), "is a folder"});
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_error<UserError>([&] { File::open_read(folder / "pipe"); }, {"pipe", "not a regular file"});
  write_text(folder / "short", "12345");
  std::string out(4, '?');
  expect_error<UserError>([&] { File::open_read(folder / "short").read_at(3, std::as_writable_bytes(std::span(out))); },
                          {"short", "ends at byte 5", "2 bytes before"});
  expect_error<UserError>([&] { read_file(folder / "short", 4); }, {"short", "5 bytes", "more than the 4"});
}

TEST(File, FullDeviceIsAUserErrorWithAHint) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  File file = File::create("/dev/full");
  expect_error<UserError>([&] { file.write(as_bytes("x")); }, {"/dev/full", "No space left on device", "hint", "free some space"});
}

TEST(File, AtomicWriteReplacesAndLeavesNoTemporaryName) {
  TemporaryFolder folder;
  write_file_atomically(folder / "plan.json", "old");
  write_file_atomically(folder / "plan.json", "new");
  EXPECT_EQ(read_text(folder / "plan.json"), "new");
  // A folder of the final name: the rename fails, and what was written must go.
  make_folder(folder / "taken/inside");
  expect_error<UserError>([&] { write_file_atomically(folder / "taken", "x"); }, {"cannot rename", "taken"});
  size_t entries = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) entries += entry.exists();
  EXPECT_EQ(entries, 2u);  // plan.json and taken
}

TEST(File, ItsStateTellsWhatHappenedToIt) {
  TemporaryFolder folder;
  const auto path = folder / "a";
  write_text(path, "12345678");
  std::filesystem::last_write_time(path, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
  const FileState before = File::open_read(path).state();
  EXPECT_EQ(before.size, 8u);
  EXPECT_EQ(MappedFile(path).state(), before);
  EXPECT_NO_THROW(require_unchanged(path, before));
  std::filesystem::create_hard_link(path, folder / "kept");  // so that its number is not given to another file

  write_text(folder / "other", "12345678");
  std::filesystem::last_write_time(folder / "other", std::filesystem::last_write_time(path));
  std::filesystem::rename(folder / "other", path);
  expect_error<UserError>([&] { require_unchanged(path, before); }, {path.string(), "replaced", "hint"});
  std::filesystem::rename(folder / "kept", path);
  EXPECT_NO_THROW(require_unchanged(path, before));
  {
    std::fstream file(path, std::ios::in | std::ios::out);
    file << '1';  // the same byte
  }
  expect_error<UserError>([&] { require_unchanged(path, before); }, {path.string(), "was written to"});
  write_text(path, "123");
  expect_error<UserError>([&] { require_unchanged(path, before); }, {path.string(), "had 8 bytes and now has 3"});
  std::filesystem::remove(path);
  expect_error<UserError>([&] { require_unchanged(path, before); }, {path.string(), "cannot be found any more"});
}

TEST(File, MakeFolderRefusesAFileOfThatName) {
  TemporaryFolder folder;
  make_folder(folder / "a/b/c");
  make_folder(folder / "a/b/c");
  EXPECT_TRUE(std::filesystem::is_directory(folder / "a/b/c"));
  write_text(folder / "file", "");
  EXPECT_THROW(make_folder(folder / "file"), UserError);
  EXPECT_THROW(make_folder(folder / "file/below"), UserError);
}

TEST(MappedFile, MapsAllBytesAndMoves) {
  TemporaryFolder folder;
  std::string content(100'000, '\0');
  std::mt19937 random(1);
  for (char& c : content) c = static_cast<char>(random());
  write_text(folder / "data", content);
  MappedFile map(folder / "data");
  const std::byte* address = map.bytes().data();
  MappedFile moved = std::move(map);
  EXPECT_EQ(moved.bytes().data(), address);
  EXPECT_TRUE(map.bytes().empty());
  ASSERT_EQ(moved.bytes().size(), content.size());
  EXPECT_EQ(std::memcmp(moved.bytes().data(), content.data(), content.size()), 0);
  moved.advise_done(0, 1'000'000);  // beyond the end: clipped
  EXPECT_EQ(std::memcmp(moved.bytes().data(), content.data(), content.size()), 0);

  write_text(folder / "empty", "");
  EXPECT_TRUE(MappedFile(folder / "empty").bytes().empty());
  EXPECT_THROW(MappedFile(folder / "none"), UserError);
}

// Published test vectors of XXH3: the empty input, seed 0.
TEST(Hasher, EqualsThePublishedValuesAndDoesNotDependOnPieces) {
  EXPECT_EQ(checksum64({}), 0x2d06800538d394c2u);
  EXPECT_EQ(Hasher().hex(), "99aa06d3014798d86001c324468d497f");
  std::string text(5000, 'x');
  Hasher whole, pieces, other;
  whole.add(text);
  pieces.add(std::string_view(text).substr(0, 1234));
  pieces.add(std::string_view(text).substr(1234));
  text[4321] = 'y';
  other.add(text);
  EXPECT_EQ(whole.hex(), pieces.hex());
  EXPECT_EQ(whole.hex(), whole.hex());
  EXPECT_NE(whole.hex(), other.hex());
}

}  // namespace
}  // namespace hcsmoe
