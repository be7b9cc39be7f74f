#include <gtest/gtest.h>

#include <random>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/error.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors_header(std::as_bytes(std::span(file)), file.size(), "model-00007.safetensors");
}

std::string file_of(const std::string& header, size_t data_bytes) { return safetensors_bytes(header, std::string(data_bytes, 'd')); }

void expect_refused(const std::string& file, std::vector<std::string> parts) {
  SCOPED_TRACE(file.substr(0, 200));
  parts.push_back("model-00007.safetensors");
  expect_error<UserError>([&] { parse(file); }, parts);
}

TEST(SafetensorsHeader, ReadsTensorsInTheOrderOfTheirBytes) {
  const std::string header =
      R"({"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},"__metadata__":{"format":"pt","n":"1"},)"
      R"("scalar":{"dtype":"F64","shape":[],"data_offsets":[0,8]},"none":{"dtype":"F32","shape":[4,0],"data_offsets":[8,8]}}   )";
  SafetensorsHeader parsed = parse(file_of(header, 20));
  ASSERT_EQ(parsed.tensors.size(), 3u);
  EXPECT_EQ(parsed.data_begin, 8 + header.size());
  EXPECT_EQ(parsed.metadata, (std::map<std::string, std::string>{{"format", "pt"}, {"n", "1"}}));
  EXPECT_EQ(parsed.tensors[0].name, "scalar");
  EXPECT_EQ(parsed.tensors[0].elements(), 1);
  EXPECT_EQ(parsed.tensors[1].name, "none");
  EXPECT_EQ(parsed.tensors[1].elements(), 0);
  EXPECT_EQ(parsed.tensors[2].name, "b");
  EXPECT_EQ(parsed.tensors[2].dtype.torch, at::kBFloat16);
  EXPECT_EQ(parsed.tensors[2].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(parsed.tensors[2].begin, parsed.data_begin + 8);
  EXPECT_EQ(parsed.tensors[2].bytes(), 12u);
}

TEST(SafetensorsHeader, NoTensorsAtAll) {
  EXPECT_TRUE(parse(file_of("{}", 0)).tensors.empty());
  expect_refused(file_of("{}", 3), {"last 3 bytes belong to no tensor"});
}

// A header of 640 bytes begins with the bytes 80 02, as a pickle does; that must not make it one.
TEST(SafetensorsHeader, ALengthThatLooksLikeAPickleIsRead) {
  std::string header = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";
  header.append(640 - header.size(), ' ');
  EXPECT_EQ(parse(file_of(header, 4)).tensors.size(), 1u);
}

TEST(SafetensorsHeader, DtypesAreKnown) {
  const std::vector<std::pair<std::string, int64_t>> expected = {{"F64", 8}, {"F32", 4}, {"F16", 2},     {"BF16", 2},    {"I64", 8},
                                                                 {"I32", 4}, {"I16", 2}, {"I8", 1},      {"U8", 1},      {"BOOL", 1},
                                                                 {"U16", 2}, {"U32", 4}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U64", 8}};
  for (const auto& [name, bytes] : expected) {
    const DType dtype = dtype_from_name(name);
    EXPECT_EQ(dtype.bytes, bytes) << name;
    EXPECT_EQ(static_cast<int64_t>(c10::elementSize(dtype.torch)), bytes) << name;
    EXPECT_EQ(dtype_from_torch(dtype.torch).name, name);
  }
  expect_error<UserError>([] { dtype_from_name("F4"); }, {"\"F4\"", "BF16", "F8_E4M3"});
  expect_error<Error>([] { dtype_from_torch(at::kComplexDouble); }, {"ComplexDouble"});
}

TEST(SafetensorsHeader, FilesThatAreNoSafetensors) {
  expect_refused("", {"empty", "download"});
  expect_refused("1234567", {"7 bytes", "too few"});
  expect_refused("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 42\n", {"Git LFS pointer", "git lfs pull"});
  expect_refused("<!DOCTYPE html><html>" + std::string(100, ' '), {"web page"});
  expect_refused("PK\x03\x04" + std::string(100, 'z'), {"pickle", "safe_serialization=True"});
  expect_refused(std::string("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9", 9) + std::string(100, 'z'), {"pickle"});
  expect_refused(std::string(8, '\xff') + std::string(100, 'x'), {"18446744073709551615 bytes", "100 MB"});
  expect_refused(safetensors_bytes(std::string(200, ' '), "").substr(0, 100), {"200 bytes reaches beyond the end", "truncated"});
  std::string huge = safetensors_bytes("{}", "");
  huge[3] = 0x7f;  // 2 GB
  expect_refused(huge, {"100 MB"});
  expect_refused(file_of("[]", 0), {"not a JSON object"});
  expect_refused(file_of(" {}", 0), {"not a JSON object"});
  expect_refused(file_of("", 10), {"not a JSON object"});
  expect_refused(file_of("not json", 0), {"not a JSON object"});
  expect_refused(file_of("{\"a\": ", 0), {"(header):1:", "unexpected end of input"});
  expect_refused(file_of("{\"a\xff\": 1}", 0), {"(header):1:", "UTF-8"});
  expect_refused(file_of("{} {}", 0), {"(header):1:"});
}

TEST(SafetensorsHeader, EntriesThatAreWrong) {
  auto entry = [](const std::string& inside) { return "{\"w\":{" + inside + "}}"; };
  const std::string offsets = R"("data_offsets":[0,8])";
  expect_refused(file_of(R"({"w":3})", 8), {"tensor \"w\"", "not an object"});
  expect_refused(file_of(entry(R"("shape":[2],)" + offsets), 8), {"tensor \"w\"", "has no dtype"});
  expect_refused(file_of(entry(R"("dtype":"F32",)" + offsets), 8), {"tensor \"w\"", "has no shape"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[2])"), 8), {"tensor \"w\"", "has no data_offsets"});
  expect_refused(file_of(entry(R"("dtype":"F31","shape":[2],)" + offsets), 8), {"tensor \"w\"", "unknown element type \"F31\"", "BF16"});
  expect_refused(file_of(entry(R"("dtype":4,"shape":[2],)" + offsets), 8), {"tensor \"w\"", "dtype is not a string"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":2,)" + offsets), 8), {"tensor \"w\"", "shape is not an array"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[-2],)" + offsets), 8), {"tensor \"w\"", "shape is negative"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[2.0],)" + offsets), 8), {"tensor \"w\"", "shape is not an integer"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":["2"],)" + offsets), 8), {"tensor \"w\"", "shape is not a number"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[9223372036854775808],)" + offsets), 8), {"tensor \"w\"", "too large"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[99999999999999999999],)" + offsets), 8), {"tensor \"w\"", "too large"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[4294967296,4294967298],)" + offsets), 8), {"tensor \"w\"", "64-bit"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0])"), 0), {"tensor \"w\"", "64-bit"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[3],)" + offsets), 8), {"tensor \"w\"", "8 bytes", "[3] of F32 needs 12"});
  expect_refused(file_of(entry(R"("dtype":"BF16","shape":[3],)" + offsets), 8), {"tensor \"w\"", "8 bytes", "[3] of BF16 needs 6"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0])"), 8), {"tensor \"w\"", "two numbers"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,8,8])"), 8), {"tensor \"w\"", "two numbers"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[2],"data_offsets":[-8,0])"), 8), {"tensor \"w\"", "begin", "negative"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"), 8), {"tensor \"w\"", "ends before it begins"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,1e300])"), 8), {"tensor \"w\"", "end", "too large"});
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,1e999])"), 8), {"(header):1:", "number overflow"});
  expect_refused(file_of(entry(R"("dtype":"F32","dtype":"F32","shape":[2],)" + offsets), 8), {"\"dtype\" appears twice"});
  expect_refused(file_of(R"({"":{"dtype":"F32","shape":[2],)" + offsets + "}}", 8), {"empty name"});
  expect_refused(file_of(R"({"a\u0000":{"dtype":"F32","shape":[2],)" + offsets + "}}", 8), {"zero byte"});
  expect_refused(file_of(R"({"__metadata__":[]})", 0), {"__metadata__ is not an object"});
  expect_refused(file_of(R"({"__metadata__":{"format":1}})", 0), {"__metadata__", "\"format\" is not a string"});
  std::string many = "1";
  for (int i = 0; i < 100; ++i) many += ",1";
  expect_refused(file_of(entry(R"("dtype":"F32","shape":[)" + many + R"(],"data_offsets":[0,4])"), 4), {"101 dimensions"});
}

TEST(SafetensorsHeader, RangesThatDoNotCoverTheData) {
  auto two = [](int begin_a, int end_a, int begin_b, int end_b) {
    auto entry = [](const char* name, int begin, int end) {
      return "\"" + std::string(name) + R"(":{"dtype":"U8","shape":[)" + std::to_string(end - begin) + R"(],"data_offsets":[)" +
             std::to_string(begin) + "," + std::to_string(end) + "]}";
    };
    return "{" + entry("a", begin_a, end_a) + "," + entry("b", begin_b, end_b) + "}";
  };
  EXPECT_EQ(parse(file_of(two(4, 8, 0, 4), 8)).tensors.front().name, "b");
  expect_refused(file_of(two(0, 5, 4, 8), 8), {"tensor \"b\"", "overlap", "\"a\""});
  expect_refused(file_of(two(0, 4, 0, 4), 4), {"tensor \"b\"", "overlap", "\"a\""});
  expect_refused(file_of(two(0, 8, 2, 4), 8), {"tensor \"b\"", "overlap", "\"a\""});
  expect_refused(file_of(two(0, 3, 4, 8), 8), {"tensor \"b\"", "1 bytes before it", "hole"});
  expect_refused(file_of(two(1, 4, 4, 8), 8), {"tensor \"a\"", "1 bytes before it", "hole"});
  expect_refused(file_of(two(0, 4, 4, 8), 9), {"last 1 bytes", "hole at the end"});
  expect_refused(file_of(two(0, 4, 4, 8), 7), {"tensor \"b\"", "ends at byte 8", "only 7", "truncated", "download"});
  expect_refused(file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", 8),
                 {"\"a\" appears twice"});
}

// Whatever the bytes are: a UserError, or a header that fits the file. The sanitizer build runs this too.
TEST(SafetensorsHeader, RandomDamageIsFoundOrHarmless) {
  TemporaryFolder folder;
  const std::vector<uint16_t> values(24, 0x3f80);
  write_safetensors(folder / "a",
                    {raw_tensor("layers.0.w", "BF16", {2, 3, 4}, values), raw_tensor("layers.0.b", "U8", {48}, std::vector<uint8_t>(48)),
                     raw_tensor("e", "F32", {0}, std::vector<float>())});
  const std::string seed = read_text(folder / "a");
  std::mt19937 random(3);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string file = seed;
    for (int i = 0, n = 1 + static_cast<int>(random() % 3); i < n && !file.empty(); ++i) {
      const size_t at = random() % file.size();
      switch (random() % 5) {
        case 0:
          file[at] = static_cast<char>(random());
          break;
        case 1:
          file[at] = "0123456789[]{},:\"-"[random() % 18];
          break;
        case 2:
          file.erase(at, 1 + random() % 5);
          break;
        case 3:
          file.insert(at, file.substr(random() % file.size(), random() % 20));
          break;
        default:
          file.resize(at);
      }
    }
    try {
      const SafetensorsHeader header = parse(file);
      uint64_t covered = header.data_begin;
      for (const TensorInfo& info : header.tensors) {
        ASSERT_EQ(info.begin, covered);
        ASSERT_EQ(info.bytes(), static_cast<uint64_t>(info.elements() * info.dtype.bytes));
        covered = info.end;
      }
      ASSERT_EQ(covered, file.size());
      ++accepted;
    } catch (const UserError&) {
      ++refused;
    }
  }
  std::cout << accepted << " accepted, " << refused << " refused\n";
  EXPECT_GT(accepted, 100);
  EXPECT_GT(refused, 10'000);
}

}  // namespace
}  // namespace hcsmoe
