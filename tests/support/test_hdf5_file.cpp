#include "support/hdf5_file.h"

#include <gtest/gtest.h>
#include <hdf5.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <random>
#include <thread>

#include "hcsmoe/error.h"
#include "support/files.h"
#include "support/hdf5_seal.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

constexpr const char* kFormat = "test/1";

std::vector<std::byte> random_bytes(size_t n, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(n);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

const std::vector<std::pair<std::string, int64_t>>& all_dtypes() {
  static const std::vector<std::pair<std::string, int64_t>> dtypes = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
                                                                      {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U8", 1},   {"BOOL", 1}};
  return dtypes;
}

void write_sample(const std::filesystem::path& path) {
  Hdf5Writer writer(path, kFormat);
  writer.attribute("layer", int64_t{-7});
  writer.attribute("checkpoint", "0123 é");
  writer.attribute("nothing", "");
  for (const auto& [dtype, size] : all_dtypes()) {
    writer.dataset("set." + dtype, dtype, {3, 5}, random_bytes(static_cast<size_t>(15 * size), static_cast<unsigned>(dtype[0])));
  }
  writer.dataset("scalar", "F64", {}, random_bytes(8));
  writer.dataset("empty", "F32", {0, 4}, {});
  writer.finish();
}

TEST(Hdf5File, EveryTypeComesBackBitForBit) {
  TemporaryFolder folder;
  write_sample(folder / "a.h5");
  EXPECT_FALSE(std::filesystem::exists(folder / "a.h5.tmp"));
  Hdf5Reader reader(folder / "a.h5", kFormat);
  EXPECT_EQ(reader.integer("layer"), -7);
  EXPECT_EQ(reader.text("checkpoint"), "0123 é");
  EXPECT_EQ(reader.text("nothing"), "");
  const std::string file = read_text(folder / "a.h5");
  for (const auto& [dtype, size] : all_dtypes()) {
    const Hdf5Dataset& info = reader.info("set." + dtype);
    const auto expected = random_bytes(static_cast<size_t>(15 * size), static_cast<unsigned>(dtype[0]));
    EXPECT_EQ(info.dtype, dtype);
    EXPECT_EQ(info.shape, (std::vector<int64_t>{3, 5}));
    EXPECT_EQ(reader.read("set." + dtype), expected) << dtype;
    ASSERT_LE(info.offset + info.bytes, file.size());
    EXPECT_EQ(std::memcmp(file.data() + info.offset, expected.data(), expected.size()), 0) << dtype;
    EXPECT_EQ(info.checksum, checksum64(expected));
  }
  EXPECT_TRUE(reader.info("scalar").shape.empty());
  EXPECT_EQ(reader.read("scalar"), random_bytes(8));
  EXPECT_EQ(reader.info("empty").shape, (std::vector<int64_t>{0, 4}));
  EXPECT_TRUE(reader.read("empty").empty());
  ASSERT_EQ(reader.datasets().size(), 12u);
  for (size_t i = 1; i < reader.datasets().size(); ++i) EXPECT_LT(reader.datasets()[i - 1].name, reader.datasets()[i].name);
  EXPECT_TRUE(reader.has("set.BF16"));
  EXPECT_FALSE(reader.has("set.BF1"));
  expect_error<UserError>([&] { reader.info("none"); }, {"a.h5", "no dataset none"});
  expect_error<UserError>([&] { reader.text("layer"); }, {"a.h5", "no text attribute layer"});
  expect_error<UserError>([&] { reader.integer("format"); }, {"a.h5", "no integer attribute format"});
}

// What other HDF5 programs see: the library's own conversion to float.
TEST(Hdf5File, OtherProgramsReadSmallFloats) {
  TemporaryFolder folder;
  {
    Hdf5Writer writer(folder / "a.h5", kFormat);
    const std::vector<uint16_t> bf16 = {0x3f80, 0xc049, 0x0000, 0x0080, 0x7f7f}, f16 = {0x3c00, 0xc248, 0x0001, 0x7bff};
    writer.dataset("bf16", "BF16", {5}, std::as_bytes(std::span(bf16)));
    writer.dataset("f16", "F16", {4}, std::as_bytes(std::span(f16)));
    writer.finish();
  }
  hid_t file = H5Fopen((folder / "a.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  ASSERT_GE(file, 0);
  auto read = [&](const char* name, size_t n) {
    std::vector<float> values(n);
    hid_t set = H5Dopen2(file, name, H5P_DEFAULT);
    EXPECT_GE(H5Dread(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
    H5Dclose(set);
    return values;
  };
  EXPECT_EQ(read("bf16", 5), (std::vector<float>{1.0f, -3.140625f, 0.0f, 0x1p-126f, 0x1.fep127f}));
  EXPECT_EQ(read("f16", 4), (std::vector<float>{1.0f, -3.140625f, 0x1p-24f, 65504.0f}));
  H5Fclose(file);
}

TEST(Hdf5File, EqualContentMakesEqualFiles) {
  TemporaryFolder folder;
  write_sample(folder / "a.h5");
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // HDF5's times have seconds
  write_sample(folder / "b.h5");
  EXPECT_TRUE(read_text(folder / "a.h5") == read_text(folder / "b.h5"));
}

TEST(Hdf5File, ReadsInPieces) {
  TemporaryFolder folder;
  const auto data = random_bytes((20u << 20) + 4);
  {
    Hdf5Writer writer(folder / "a.h5", kFormat);
    writer.dataset("x", "F32", {static_cast<int64_t>(data.size() / 4)}, data);
    writer.finish();
  }
  Hdf5Reader reader(folder / "a.h5", kFormat);
  std::vector<size_t> pieces;
  reader.read("x", [&](std::span<const std::byte> piece) { pieces.push_back(piece.size()); });
  EXPECT_EQ(pieces, (std::vector<size_t>{8u << 20, 8u << 20, (4u << 20) + 4}));
  EXPECT_EQ(reader.read("x"), data);
}

TEST(Hdf5File, WithoutFinishNothingStays) {
  TemporaryFolder folder;
  {
    Hdf5Writer writer(folder / "a.h5", kFormat);
    writer.dataset("x", "U8", {1000}, random_bytes(1000));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Hdf5File, MisuseIsAnError) {
  TemporaryFolder folder;
  Hdf5Writer writer(folder / "a.h5", kFormat);
  expect_error<Error>([&] { writer.dataset("x", "F32", {2}, random_bytes(7)); }, {"7 bytes", "dataset x"});
  expect_error<Error>([&] { writer.dataset("x", "F8_E4M3", {2}, random_bytes(2)); }, {"no HDF5 type for F8_E4M3"});
  expect_error<Error>([&] { writer.dataset("a/b", "U8", {1}, random_bytes(1)); }, {"a/b"});
  expect_error<Error>([&] { writer.dataset("x", "F32", {int64_t{1} << 40, int64_t{1} << 40}, {}); }, {"dataset x"});
  expect_error<Error>([&] { writer.dataset("x", "F32", {-1}, {}); }, {"dataset x"});
  writer.dataset("x", "U8", {1}, random_bytes(1));
  expect_error<UserError>([&] { writer.dataset("x", "U8", {1}, random_bytes(1)); }, {"a.h5", "dataset x", "exists"});
  expect_error<UserError>([&] { Hdf5Writer(folder / "none/a.h5", kFormat); }, {"none/a.h5", "No such file or directory"});
}

void expect_full_disk(const std::filesystem::path& folder) {
  const auto path = folder / "full.h5";
  const auto data = random_bytes(300'000);
  expect_error<UserError>(
      [&] {
        Hdf5Writer writer(path, kFormat);
        for (int i = 0; i < 20; ++i) writer.dataset("x" + std::to_string(i), "U8", {300'000}, data);
        writer.finish();
      },
      {"full.h5", "free space", "errno ="});
  EXPECT_TRUE(std::filesystem::is_empty(folder));
}

TEST(Hdf5File, FileSizeLimitIsAUserError) {
  TemporaryFolder folder;
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small{1'000'000, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  expect_full_disk(folder.path());
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  // The library goes on working afterwards.
  write_sample(folder / "a.h5");
  EXPECT_NO_THROW(Hdf5Reader(folder / "a.h5", kFormat));
}

TEST(Hdf5File, FullDiskIsAUserError) {
  TemporaryFolder folder;
  if (::mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=1m") != 0) GTEST_SKIP() << "may not mount a small file system";
  expect_full_disk(folder.path());
  // Its blocks are free again, although HDF5 may still hold the removed file.
  EXPECT_GT(std::filesystem::space(folder.path()).available, 900'000u);
  EXPECT_EQ(::umount2(folder.path().c_str(), MNT_DETACH), 0);
}

TEST(Hdf5File, OtherFilesAreRefused) {
  TemporaryFolder folder;
  const auto path = folder / "a.h5";
  auto expect_refused = [&](const std::vector<std::string>& parts) { expect_error<UserError>([&] { Hdf5Reader(path, kFormat); }, parts); };
  expect_refused({"a.h5", "No such file"});
  write_text(path, "");
  expect_refused({"a.h5", "not an HDF5 file", "empty"});
  write_text(path, std::string(10'000, 'x'));
  expect_refused({"a.h5", "not an HDF5 file"});
  write_sample(path);
  expect_error<UserError>([&] { Hdf5Reader(path, "other/2"); }, {"a.h5", "not a file of the format other/2", "test/1"});
  std::string whole = read_text(path);
  write_text(path, whole.substr(0, whole.size() - 1));
  expect_refused({"a.h5", "truncated"});
}

// Files that the library itself made, with what we do not accept.
TEST(Hdf5File, ForeignContentIsRefused) {
  TemporaryFolder folder;
  const auto path = folder / "a.h5";
  auto expect_refused = [&](auto&& add, const std::vector<std::string>& parts) {
    write_sample(path);
    hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
    ASSERT_GE(file, 0);
    add(file);
    ASSERT_GE(H5Fclose(file), 0);
    expect_error<UserError>([&] { Hdf5Reader(path, kFormat); }, {"a.h5", "changed afterwards by another program"});
    hdf5::seal(path, {});
    expect_error<UserError>([&] { Hdf5Reader(path, kFormat); }, parts);
  };
  auto add_set = [](hid_t file, hid_t type, hid_t creation) {
    hsize_t extent = 10;
    hid_t space = H5Screate_simple(1, &extent, nullptr);
    hid_t set = H5Dcreate2(file, "foreign", type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    EXPECT_GE(set, 0);
    H5Dclose(set);
    H5Sclose(space);
  };
  expect_refused([&](hid_t file) { add_set(file, H5T_IEEE_F32BE, H5P_DEFAULT); }, {"a.h5", "foreign", "element type"});
  expect_refused([&](hid_t file) { add_set(file, H5T_STD_U32LE, H5P_DEFAULT); }, {"a.h5", "foreign", "element type"});
  // Late allocation: a dataset that was never written has no bytes.
  expect_refused([&](hid_t file) { add_set(file, H5T_IEEE_F32LE, H5P_DEFAULT); }, {"a.h5", "foreign", "not stored in full"});
  expect_refused(
      [&](hid_t file) {
        hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
        H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY);
        add_set(file, H5T_IEEE_F32LE, creation);
        H5Pclose(creation);
      },
      {"a.h5", "foreign", "no checksum"});
  expect_refused(
      [&](hid_t file) {
        hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
        hsize_t chunk = 5;
        H5Pset_chunk(creation, 1, &chunk);
        add_set(file, H5T_IEEE_F32LE, creation);
        H5Pclose(creation);
      },
      {"a.h5", "foreign", "not stored in one piece"});
  expect_refused(
      [&](hid_t file) {
        hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
        H5Pset_external(creation, "/etc/hostname", 0, 40);
        add_set(file, H5T_IEEE_F32LE, creation);
        H5Pclose(creation);
      },
      {"a.h5", "foreign", "not stored in one piece"});
  expect_refused([](hid_t file) { H5Lcreate_external("other.h5", "/x", file, "foreign", H5P_DEFAULT, H5P_DEFAULT); },
                 {"a.h5", "foreign is a link"});
  expect_refused([](hid_t file) { H5Lcreate_soft("/scalar", file, "foreign", H5P_DEFAULT, H5P_DEFAULT); }, {"a.h5", "foreign is a link"});
  expect_refused([](hid_t file) { H5Gclose(H5Gcreate2(file, "foreign", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)); },
                 {"a.h5", "foreign is not a dataset"});
  expect_refused([](hid_t file) { H5Adelete(file, "format"); }, {"a.h5", "no format attribute"});
}

TEST(Hdf5File, AFlippedBitIsFoundWhenItIsRead) {
  TemporaryFolder folder;
  const auto path = folder / "a.h5";
  write_sample(path);
  const uint64_t offset = Hdf5Reader(path, kFormat).info("set.BF16").offset;
  std::string file = read_text(path);
  file[offset + 29] ^= 1;
  write_text(path, file);
  Hdf5Reader reader(path, kFormat);
  EXPECT_NO_THROW(reader.read("set.F32"));
  expect_error<UserError>([&] { reader.read("set.BF16"); }, {"a.h5", "damaged", "set.BF16", "checksum"});
}

// Every byte of the file is under one checksum or another. Undetected damage to the structure would crash the library.
TEST(Hdf5File, DamageAnywhereIsFound) {
  TemporaryFolder folder;
  const auto path = folder / "a.h5";
  write_sample(path);
  const std::string seed = read_text(path);
  std::mt19937 random(11);
  for (int round = 0; round < 1000; ++round) {
    std::string file = seed;
    if (round % 4 == 0) {
      file.resize(random() % file.size());
    } else {
      for (int i = 0, n = round % 4; i < n; ++i) {
        const size_t at = round % 2 ? random() % file.size() : file.size() - 1 - random() % 300;
        file[at] = static_cast<char>(random());
      }
    }
    if (file == seed) continue;
    write_text(path, file);
    EXPECT_THROW(
        {
          Hdf5Reader reader(path, kFormat);
          for (const Hdf5Dataset& set : reader.datasets()) reader.read(set.name);
        },
        UserError)
        << "round " << round;
  }
}

TEST(Hdf5File, OneThreadWritesWhileAnotherReads) {
  TemporaryFolder folder;
  write_sample(folder / "a.h5");
  std::thread background([&] {
    for (int i = 0; i < 20; ++i) write_sample(folder / ("b" + std::to_string(i) + ".h5"));
  });
  for (int i = 0; i < 50; ++i) EXPECT_EQ(Hdf5Reader(folder / "a.h5", kFormat).read("scalar"), random_bytes(8));
  background.join();
  EXPECT_EQ(read_text(folder / "b19.h5"), read_text(folder / "a.h5"));
}

}  // namespace
}  // namespace hcsmoe
