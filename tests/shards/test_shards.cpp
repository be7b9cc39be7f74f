#include <gtest/gtest.h>

#include <fstream>

#include "hcsmoe/error.h"
#include "hcsmoe/shards.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;

std::vector<std::byte> pattern(size_t size, unsigned seed) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>((i * 131 + seed * 17 + i / 251) & 0xff);
  return bytes;
}

std::vector<std::byte> read(const ShardReader& reader, const std::string& name, size_t* pieces = nullptr, size_t* largest = nullptr) {
  std::vector<std::byte> bytes;
  reader.read(name, [&](std::span<const std::byte> piece) {
    bytes.insert(bytes.end(), piece.begin(), piece.end());
    if (pieces) ++*pieces;
    if (largest) *largest = std::max(*largest, piece.size());
  });
  return bytes;
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

void flip_byte(const fs::path& file, uint64_t offset) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(static_cast<std::streamoff>(offset));
  const char byte = static_cast<char>(stream.get() ^ 0x40);
  stream.seekp(static_cast<std::streamoff>(offset));
  stream.put(byte);
}

const ShardOrigin origin{"0123456789abcdef0123456789abcdef", "layer plan"};

TEST(Shards, FileNames) {
  EXPECT_EQ(shard_file("work", 3), fs::path("work/shards/layer_0003.h5"));
  EXPECT_EQ(shard_file("work", 12345), fs::path("work/shards/layer_12345.h5"));
}

TEST(Shards, WhatIsWrittenIsRead) {
  TemporaryFolder folder;
  const fs::path file = shard_file(folder.path(), 7);
  const std::string gate = "model.layers.7.mlp.experts.0.gate_proj.weight", router = "model.layers.7.mlp.gate.weight";
  const std::string large = "model.layers.7.mlp.experts.0.down_proj.weight";
  {
    ShardWriter writer(file, 7, origin);
    writer.write(router, dtype_from_name("F32"), {3, 5}, pattern(60, 1));
    writer.write(gate, dtype_from_name("BF16"), {7, 5}, pattern(70, 2));
    writer.write(large, dtype_from_name("F16"), {3000, 3001}, pattern(2 * 3000 * 3001, 3));
    EXPECT_FALSE(fs::exists(file)) << "visible before it is whole";
    writer.finish();
  }
  const ShardReader reader(file);
  EXPECT_EQ(reader.layer(), 7);
  EXPECT_TRUE(reader.origin() == origin);
  EXPECT_FALSE(reader.origin() == (ShardOrigin{origin.checkpoint, "another plan"}));
  ASSERT_EQ(reader.tensors().size(), 3u);
  EXPECT_EQ(reader.info(router).dtype.name, "F32");
  EXPECT_EQ(reader.info(router).shape, (std::vector<int64_t>{3, 5}));
  EXPECT_EQ(read(reader, router), pattern(60, 1));
  EXPECT_EQ(reader.info(gate).dtype.name, "BF16");
  EXPECT_EQ(read(reader, gate), pattern(70, 2));
  size_t pieces = 0, longest = 0;
  EXPECT_EQ(read(reader, large, &pieces, &longest), pattern(2 * 3000 * 3001, 3));
  EXPECT_EQ(pieces, 3u);
  EXPECT_LE(longest, size_t{8} << 20);

  // The byte range of a tensor is where its bytes are.
  std::ifstream stream(file, std::ios::binary);
  stream.seekg(static_cast<std::streamoff>(reader.info(gate).begin));
  std::vector<std::byte> raw(reader.info(gate).bytes());
  stream.read(reinterpret_cast<char*>(raw.data()), static_cast<std::streamsize>(raw.size()));
  EXPECT_EQ(raw, pattern(70, 2));

  EXPECT_NE(error_of([&] { reader.info("no.such.weight"); }).find("no.such.weight"), std::string::npos);
  EXPECT_NE(error_of([&] { read(reader, "no.such.weight"); }).find(file.string()), std::string::npos);
}

TEST(Shards, AnUnfinishedOneLeavesNothing) {
  TemporaryFolder folder;
  const fs::path file = shard_file(folder.path(), 0);
  { ShardWriter(file, 0, origin).write("a", dtype_from_name("F32"), {4}, pattern(16, 1)); }
  EXPECT_TRUE(fs::is_empty(file.parent_path()));
}

TEST(Shards, EqualContentMakesEqualFiles) {
  TemporaryFolder folder;
  std::string content[2];
  for (int i = 0; i < 2; ++i) {
    const fs::path file = folder / std::to_string(i) / "layer_0000.h5";
    ShardWriter writer(file, 0, origin);
    writer.write("b", dtype_from_name("F32"), {4}, pattern(16, 1));
    writer.write("a", dtype_from_name("BF16"), {3, 1}, pattern(6, 2));
    writer.finish();
    std::ifstream stream(file, std::ios::binary);
    content[i].assign(std::istreambuf_iterator<char>(stream), {});
  }
  EXPECT_GT(content[0].size(), 22u);
  EXPECT_TRUE(content[0] == content[1]);
}

TEST(Shards, DamageIsFound) {
  TemporaryFolder folder;
  const fs::path file = folder / "layer_0001.h5";
  ShardWriter writer(file, 1, origin);
  writer.write("first", dtype_from_name("BF16"), {100, 10}, pattern(2000, 1));
  writer.write("second", dtype_from_name("BF16"), {100, 10}, pattern(2000, 2));
  writer.finish();
  const uint64_t begin = ShardReader(file).info("second").begin;

  flip_byte(file, begin + 1234);
  const ShardReader reader(file);
  EXPECT_EQ(read(reader, "first"), pattern(2000, 1));
  const std::string error = error_of([&] { read(reader, "second"); });
  EXPECT_NE(error.find(file.string()), std::string::npos) << error;
  EXPECT_NE(error.find("second"), std::string::npos) << error;

  fs::resize_file(file, begin + 100);
  EXPECT_NE(error_of([&] { ShardReader{file}; }).find(file.string()), std::string::npos);
  fs::resize_file(file, 0);
  EXPECT_NE(error_of([&] { ShardReader{file}; }).find(file.string()), std::string::npos);
  std::ofstream(file) << "not HDF5 at all";
  EXPECT_NE(error_of([&] { ShardReader{file}; }).find(file.string()), std::string::npos);
  EXPECT_NE(error_of([&] { ShardReader{folder / "none.h5"}; }).find("none.h5"), std::string::npos);
}

}  // namespace
}  // namespace hcsmoe
