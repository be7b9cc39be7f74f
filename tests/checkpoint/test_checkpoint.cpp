#include "hcsmoe/checkpoint.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "hcsmoe/error.h"
#include "support/files.h"
#include "support/nearest_name.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

constexpr const char* kConfig = R"({"model_type": "mixtral", "hidden_size": 4})";

RawTensor ramp(const std::string& name, int64_t n, float first = 0) {
  std::vector<float> values(static_cast<size_t>(n));
  std::iota(values.begin(), values.end(), first);
  return raw_tensor(name, "F32", {n}, values);
}

std::string index_of(const std::vector<std::pair<std::string, std::string>>& weight_map) {
  nlohmann::ordered_json json;
  json["metadata"]["total_size"] = 1;
  json["weight_map"] = nlohmann::ordered_json::object();
  for (const auto& [tensor, file] : weight_map) json["weight_map"][tensor] = file;
  return json.dump();
}

// Two files and their index; the tests below damage it.
class TwoFiles : public testing::Test {
 protected:
  TwoFiles() {
    write_text(folder / "config.json", kConfig);
    write_safetensors(folder / first, {ramp("b", 3), ramp("a", 5, 100)});
    write_safetensors(folder / second, {ramp("c", 2, 7)});
    write_index({{"a", first}, {"b", first}, {"c", second}});
  }
  void write_index(const std::vector<std::pair<std::string, std::string>>& weight_map) { write_text(folder / index, index_of(weight_map)); }
  void expect_refused(const std::vector<std::string>& parts) {
    expect_error<UserError>([&] { Checkpoint::open(folder.path()); }, parts);
  }

  const std::string first = "model-00001-of-00002.safetensors", second = "model-00002-of-00002.safetensors";
  const std::string index = "model.safetensors.index.json";
  TemporaryFolder folder;
};

// Expected values: Python's safetensors and torch on the same files.
TEST(Checkpoint, DemoModelEqualsPythonSafetensors) {
  const Checkpoint checkpoint = Checkpoint::open(TEST_DATA "/demo/model");
  EXPECT_EQ(checkpoint.config()["model_type"], "qwen2_moe");
  EXPECT_EQ(checkpoint.config().begin().key(), "architectures");
  ASSERT_EQ(checkpoint.files().size(), 3u);
  EXPECT_EQ(checkpoint.tensors().size(), 251u);
  EXPECT_EQ(checkpoint.total_bytes(), 6'051'072u);
  struct Expected {
    const char* name;
    int file;
    std::vector<int64_t> shape;
    double first, second, last, sum, absolute_sum;
  };
  const std::vector<Expected> expected = {
      {"model.embed_tokens.weight", 0, {1024, 128}, 0.0, 0.0, 0.11083984375, -2.160025905817747, 7065.697260003537},
      {"model.layers.0.mlp.gate.weight",
       0,
       {16, 128},
       -0.008544921875,
       -0.0299072265625,
       -0.0263671875,
       -0.874577522277832,
       73.3157148361206},
      {"model.layers.3.mlp.experts.15.down_proj.weight",
       1,
       {128, 96},
       0.0247802734375,
       -0.076171875,
       0.03369140625,
       -11.699493885040283,
       812.7378334999084},
      {"lm_head.weight", 2, {1024, 128}, -0.1845703125, -0.08544921875, 0.008056640625, 457.6862063650042, 20739.946008494124},
      {"model.layers.2.self_attn.q_proj.bias", 1, {128}, 0.043212890625, 0.111328125, -0.06494140625, -0.48797607421875, 12.53302001953125},
      {"model.norm.weight", 1, {128}, 1.4765625, 1.5859375, 1.6484375, 200.140625, 200.140625},
  };
  double largest = 0;
  for (const Expected& e : expected) {
    SCOPED_TRACE(e.name);
    const at::Tensor tensor = checkpoint.tensor(e.name, e.shape);
    EXPECT_EQ(checkpoint.info(e.name).file, e.file);
    EXPECT_EQ(tensor.scalar_type(), at::kBFloat16);
    EXPECT_TRUE(tensor.is_contiguous());
    const at::Tensor flat = tensor.to(at::kDouble).flatten();
    EXPECT_EQ(flat[0].item<double>(), e.first);
    EXPECT_EQ(flat[1].item<double>(), e.second);
    EXPECT_EQ(flat[-1].item<double>(), e.last);
    // All terms are multiples of 2^-30 or so: the sums are exact in float64, in whatever order.
    largest = std::max({largest, std::abs(flat.sum().item<double>() - e.sum), std::abs(flat.abs().sum().item<double>() - e.absolute_sum)});
    EXPECT_EQ(static_cast<const void*>(checkpoint.bytes(e.name).data()), tensor.data_ptr()) << "not a view of the mapped bytes";
  }
  std::cout << "largest error of the sums: " << largest << "\n";
  EXPECT_LT(largest, 1e-9);
}

TEST_F(TwoFiles, TensorsComeFileByFileInTheOrderOfTheirBytes) {
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  std::vector<std::string> names;
  for (const TensorInfo& info : checkpoint.tensors()) names.push_back(info.name);
  EXPECT_EQ(names, (std::vector<std::string>{"b", "a", "c"}));
  EXPECT_EQ(checkpoint.total_bytes(), 40u);
  EXPECT_EQ(checkpoint.info("c").file, 1);
  EXPECT_EQ(checkpoint.tensor("a")[4].item<float>(), 104.0f);
  EXPECT_TRUE(checkpoint.has("a"));
  EXPECT_FALSE(checkpoint.has("d"));
  checkpoint.read_ahead(0, 0, checkpoint.info("a").end);
  checkpoint.done_with("a");
  EXPECT_EQ(checkpoint.tensor("a")[4].item<float>(), 104.0f);
}

TEST_F(TwoFiles, FilesThatChangeAreNamed) {
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  EXPECT_NO_THROW(checkpoint.require_unchanged());
  write_safetensors(folder / second, {ramp("c", 3, 7)});
  expect_error<UserError>([&] { checkpoint.require_unchanged(); }, {second, "had", "now has", "start again"});
  expect_error<UserError>([&] { checkpoint.require_unchanged({"a", "c"}); }, {second});
  EXPECT_NO_THROW(checkpoint.require_unchanged({"a", "b"}));
  expect_error<UserError>([&] { checkpoint.fingerprint(); }, {second});
}

TEST_F(TwoFiles, WhatIsReadIsNotedOnce) {
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const TensorInfo &b = checkpoint.info("b"), &a = checkpoint.info("a"), &c = checkpoint.info("c");
  checkpoint.read_ahead(1, c.begin, c.end);
  checkpoint.read_ahead(0, a.begin, a.end);
  checkpoint.read_ahead(0, b.begin, b.end);
  checkpoint.read_ahead(0, a.begin, a.end);
  const std::vector<RangeRead> read = checkpoint.ranges_read();
  ASSERT_EQ(read.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    const TensorInfo& info = *std::array{&b, &a, &c}[i];
    EXPECT_EQ(read[i].file, info.file);
    EXPECT_EQ(read[i].begin, info.begin);
    EXPECT_EQ(read[i].end, info.end);
    EXPECT_EQ(read[i].checksum, checksum64(checkpoint.bytes(info.name)));
  }
  std::vector<std::byte> other(checkpoint.bytes("a").begin(), checkpoint.bytes("a").end());
  EXPECT_NO_THROW(checkpoint.note_read(0, a.begin, other));
  other[3] ^= std::byte{1};
  expect_error<UserError>([&] { checkpoint.note_read(0, a.begin, other); }, {first, "not those that were read there before"});
}

TEST_F(TwoFiles, ATensorOutlivesItsCheckpoint) {
  at::Tensor tensor;
  {
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    Checkpoint moved = Checkpoint::open(folder.path());
    tensor = moved.tensor("a");
  }
  std::filesystem::remove(folder / first);
  EXPECT_EQ(tensor.sum().item<float>(), 510.0f);
}

TEST_F(TwoFiles, WrongShapeAndMissingTensorAreExplained) {
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  expect_error<UserError>([&] { checkpoint.tensor("a", {5, 1}); }, {first, "\"a\"", "[5]", "[5, 1]"});
  EXPECT_NO_THROW(checkpoint.tensor("a", {5}));
  const Checkpoint demo = Checkpoint::open(TEST_DATA "/demo/model");
  expect_error<UserError>([&] { demo.tensor("model.layers.0.mlp.gate.weights"); },
                          {"demo/model", "\"model.layers.0.mlp.gate.weights\"", "nearest name is \"model.layers.0.mlp.gate.weight\""});
  expect_error<UserError>([&] { demo.bytes("zzz"); }, {"no tensor \"zzz\""});
}

TEST(NearestName, IsTheSmallestEditDistance) {
  EXPECT_EQ(nearest_name("kitten", {"sitting", "mitten", "smitten"}), "mitten");
  EXPECT_EQ(nearest_name("abcdef", {"abdef", "abcdefg"}), "abdef");  // both 1: the first
  EXPECT_EQ(nearest_name("layers.1.w", {"layers.10.w", "layers.2.w.bias", "layer.1.w"}), "layers.10.w");
  EXPECT_EQ(nearest_name("abc", {"xyz", ""}), "");
  EXPECT_EQ(nearest_name("", {"a", "b"}), "a");
  EXPECT_EQ(nearest_name("abc", {}), "");
}

TEST_F(TwoFiles, FilesThatTheIndexDoesNotNameAreIgnored) {
  write_safetensors(folder / "consolidated.safetensors", {ramp("a", 5), ramp("other", 1)});
  write_text(folder / "damaged.safetensors", "x");
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  EXPECT_EQ(checkpoint.files().size(), 2u);
  EXPECT_FALSE(checkpoint.has("other"));
}

TEST_F(TwoFiles, IndexWithPathsIsRefused) {
  for (const std::string file : {"../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", ".", "", "a\\b.safetensors"}) {
    SCOPED_TRACE(file);
    write_index({{"a", file}});
    expect_refused({index, "tensor \"a\"", "\"" + file + "\"", "not a plain file name"});
  }
  write_index({{"a", std::string("m\0.safetensors", 14)}});
  expect_refused({index, "\"m\\x00.safetensors\"", "not a plain file name"});
  write_index({{"a", "config.json"}});
  expect_refused({index, "config.json", "not a .safetensors file"});
}

TEST_F(TwoFiles, IndexThatIsWrongIsRefused) {
  write_text(folder / index, "{\n\"weight_map\": {\"a\": 1,}}");
  expect_refused({index + ":2:"});
  write_text(folder / index, "[]");
  expect_refused({index, "no weight_map"});
  write_text(folder / index, R"({"weight_map": []})");
  expect_refused({index, "no weight_map"});
  write_text(folder / index, R"({"weight_map": {"a": 3}})");
  expect_refused({index, "tensor \"a\"", "not a string"});
  write_text(folder / index, R"({"weight_map": {}})");
  expect_refused({index, "empty"});
  write_text(folder / index, R"({"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}})");
  expect_refused({index, "\"a\" appears twice"});
  write_index({{"a", first}, {"b", first}, {"c", first}, {"x", second}});
  expect_refused({index, "tensor \"c\"", "in " + first, "but it is in " + second});
  write_index({{"a", first}, {"b", first}, {"c", second}, {"d", second}});
  expect_refused({index, "tensor \"d\"", "in " + second, "not there, nor in any other file"});
}

TEST_F(TwoFiles, MissingAndUnfinishedFilesAreExplained) {
  std::filesystem::remove(folder / second);
  expect_refused({(folder / second).string(), "is missing", "index names it"});
  std::filesystem::create_symlink("/nowhere/blob", folder / second);
  expect_refused({second, "link to a file that does not exist"});
  std::filesystem::remove(folder / second);
  std::filesystem::create_directories(folder / ".cache/huggingface/download");
  write_text(folder / ".cache/huggingface/download/abc.incomplete", "x");
  expect_refused({second, "is missing", "abc.incomplete", "not finished"});
}

TEST_F(TwoFiles, DamagedFilesAreNamed) {
  const std::string whole = read_text(folder / second);
  write_text(folder / second, whole.substr(0, whole.size() - 3));
  expect_refused({(folder / second).string(), "tensor \"c\"", "truncated"});
  write_text(folder / second, "");
  expect_refused({second, "empty"});
  write_text(folder / second, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
  expect_refused({second, "Git LFS pointer"});
  write_safetensors(folder / second, {ramp("c", 2), ramp("a", 5)});
  expect_refused({"tensor \"a\"", "both in", first, second});
}

TEST_F(TwoFiles, ConfigIsChecked) {
  write_text(folder / "config.json", "{\"a\": 1,\n}");
  expect_refused({"config.json:2:1"});
  write_text(folder / "config.json", "[]");
  expect_refused({"config.json", "not a JSON object"});
  std::filesystem::remove(folder / "config.json");
  expect_refused({"config.json", "is missing"});
}

TEST_F(TwoFiles, WithoutAnIndexASeriesMustBeComplete) {
  std::filesystem::remove(folder / index);
  EXPECT_EQ(Checkpoint::open(folder.path()).tensors().size(), 3u);
  std::filesystem::remove(folder / first);
  expect_refused({first, "is missing", "series of " + second});
}

TEST_F(TwoFiles, OneFileAndAnIndexOfOthersIsAmbiguous) {
  write_safetensors(folder / "model.safetensors", {ramp("z", 1)});
  expect_refused({folder.path().string(), "both model.safetensors and " + index});
  std::filesystem::remove(folder / index);
  EXPECT_TRUE(Checkpoint::open(folder.path()).has("z"));
  EXPECT_FALSE(Checkpoint::open(folder.path()).has("a"));
  write_index({{"z", "model.safetensors"}});
  EXPECT_TRUE(Checkpoint::open(folder.path()).has("z"));
}

TEST(Checkpoint, FoldersWithoutSafetensorsAreExplained) {
  TemporaryFolder folder;
  auto expect_refused = [&](const std::vector<std::string>& parts) {
    expect_error<UserError>([&] { Checkpoint::open(folder.path()); }, parts);
  };
  expect_error<UserError>([&] { Checkpoint::open(folder / "none"); }, {"none", "does not exist"});
  write_text(folder / "config.json", kConfig);
  expect_error<UserError>([&] { Checkpoint::open(folder / "config.json"); }, {"config.json", "not a folder"});
  expect_refused({folder.path().string(), "no .safetensors file", "hint"});
  write_text(folder / "a.incomplete", "x");
  expect_refused({"a.incomplete", "not finished"});
  write_text(folder / "model.gguf", "x");
  expect_refused({"model.gguf", "llama.cpp"});
  write_text(folder / "pytorch_model.bin", "x");
  expect_refused({"pytorch_model.bin", "pickles are never read", "save_pretrained", "safe_serialization=True"});
}

// Headers of every length modulo 8: odd offsets are copied, aligned ones are views, the values are the same.
TEST(Checkpoint, MisalignedTensorsAreCopied) {
  std::set<bool> copied;
  for (int padding = 0; padding < 8; ++padding) {
    TemporaryFolder folder;
    write_text(folder / "config.json", kConfig);
    const std::vector<double> doubles = {1.5, -2.25, 1e300};
    const std::vector<uint16_t> halves = {0x3f80, 0xc000};
    const std::vector<uint8_t> bytes = {1, 2, 3};
    write_safetensors(folder / "model.safetensors",
                      {raw_tensor("u", "U8", {3}, bytes), raw_tensor("d", "F64", {3}, doubles), raw_tensor("h", "BF16", {2}, halves)},
                      padding);
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    const at::Tensor d = checkpoint.tensor("d"), h = checkpoint.tensor("h");
    for (const at::Tensor& tensor : {d, h}) EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % tensor.element_size(), 0u);
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(d[static_cast<int64_t>(i)].item<double>(), doubles[i]);
    EXPECT_EQ(h[0].item<float>(), 1.0f);
    EXPECT_EQ(h[1].item<float>(), -2.0f);
    EXPECT_EQ(checkpoint.tensor("u")[2].item<int>(), 3);
    const bool is_view = d.data_ptr() == static_cast<const void*>(checkpoint.bytes("d").data());
    EXPECT_EQ(is_view, checkpoint.info("d").begin % 8 == 0);
    copied.insert(!is_view);
  }
  EXPECT_EQ(copied.size(), 2u) << "both cases must have been seen";
}

TEST(Checkpoint, EmptyTensorsAndScalars) {
  TemporaryFolder folder;
  write_text(folder / "config.json", kConfig);
  write_safetensors(folder / "model.safetensors",
                    {raw_tensor("s", "F32", {}, std::vector<float>{2.5f}), raw_tensor("e", "BF16", {0, 7}, std::vector<uint16_t>())});
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  EXPECT_EQ(checkpoint.tensor("s").item<float>(), 2.5f);
  EXPECT_EQ(checkpoint.tensor("e").sizes(), (std::vector<int64_t>{0, 7}));
  EXPECT_TRUE(checkpoint.bytes("e").empty());
  EXPECT_EQ(checkpoint.fingerprint().size(), 32u);
}

TEST(Checkpoint, FingerprintFollowsContentAndNotTheFiles) {
  auto fingerprint = [](const std::string& config, const std::vector<std::vector<RawTensor>>& files) {
    TemporaryFolder folder;
    write_text(folder / "config.json", config);
    for (size_t i = 0; i < files.size(); ++i) write_safetensors(folder / ("part" + std::to_string(i) + ".safetensors"), files[i]);
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    EXPECT_EQ(checkpoint.fingerprint(), checkpoint.fingerprint());
    return checkpoint.fingerprint();
  };
  const RawTensor a = ramp("a", 10'000), b = ramp("b", 3);
  const std::string original = fingerprint(kConfig, {{a, b}});
  EXPECT_EQ(original.size(), 32u);
  EXPECT_EQ(original.find_first_not_of("0123456789abcdef"), std::string::npos);
  EXPECT_EQ(fingerprint(kConfig, {{a, b}}), original);
  EXPECT_EQ(fingerprint(kConfig, {{b, a}}), original);
  EXPECT_EQ(fingerprint(kConfig, {{b}, {a}}), original);

  std::set<std::string> all = {original};
  auto expect_new = [&](const std::string& value) { EXPECT_TRUE(all.insert(value).second); };
  expect_new(fingerprint(std::string(kConfig) + " ", {{a, b}}));
  expect_new(fingerprint(kConfig, {{a}}));
  expect_new(fingerprint(kConfig, {{a, ramp("c", 3)}}));
  RawTensor changed = b;
  changed.shape = {3, 1};
  expect_new(fingerprint(kConfig, {{a, changed}}));
  changed = b;
  changed.dtype = "I32";
  expect_new(fingerprint(kConfig, {{a, changed}}));
  for (size_t at : {size_t{0}, size_t{4095}, size_t{20'000}, size_t{39'999}}) {
    changed = a;
    changed.bytes[at] ^= std::byte{1};
    expect_new(fingerprint(kConfig, {{changed, b}}));
  }
}

int64_t status_kilobytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(key + ":")) return std::stoll(line.substr(key.size() + 1));
  }
  ADD_FAILURE() << "no " << key << " in /proc/self/status";
  return 0;
}

TEST(Checkpoint, ALargeFileCostsNoMemory) {
  TemporaryFolder folder;
  write_text(folder / "config.json", kConfig);
  constexpr uint64_t small = 64u << 20, large = (8ull << 30) - small;
  std::string header = R"({"large":{"dtype":"BF16","shape":[)" + std::to_string(large / 2) + R"(],"data_offsets":[0,)" +
                       std::to_string(large) + R"(]},"small":{"dtype":"F32","shape":[)" + std::to_string(small / 4) +
                       R"(],"data_offsets":[)" + std::to_string(large) + "," + std::to_string(large + small) + "]}}";
  header.append((8 - header.size() % 8) % 8, ' ');
  write_text(folder / "model.safetensors", safetensors_bytes(header, ""));
  std::error_code error;
  std::filesystem::resize_file(folder / "model.safetensors", 8 + header.size() + large + small, error);
  if (error) GTEST_SKIP() << "no sparse files here: " << error.message();

  const int64_t anonymous = status_kilobytes("RssAnon"), mapped = status_kilobytes("RssFile");
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  EXPECT_LT(status_kilobytes("RssFile") - mapped, 4096);
  const at::Tensor all = checkpoint.tensor("large");
  EXPECT_EQ(all.numel(), static_cast<int64_t>(large / 2));
  checkpoint.read_ahead(0, checkpoint.info("small").begin, checkpoint.info("small").end);
  uint64_t sum = 0;
  for (std::byte byte : checkpoint.bytes("small")) sum += std::to_integer<uint64_t>(byte);
  EXPECT_EQ(sum, 0u);
  const int64_t touched = status_kilobytes("RssFile") - mapped;
  EXPECT_GT(touched, 60'000);
  checkpoint.done_with("small");
  const int64_t released = status_kilobytes("RssFile") - mapped;
  EXPECT_LT(released, 4096);
  checkpoint.fingerprint();
  EXPECT_LT(status_kilobytes("RssFile") - mapped, 4096);
  const int64_t grown = status_kilobytes("RssAnon") - anonymous;
  std::cout << "8 GiB mapped, 64 MiB read: RssFile +" << touched << " kB, after done_with +" << released << " kB, RssAnon +" << grown
            << " kB\n";
  EXPECT_LT(grown, 8192);
}

}  // namespace
}  // namespace hcsmoe
