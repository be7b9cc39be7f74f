// Whole assemblies of the demo model from shards of known bytes. Runs on any number of ranks: every test is collective.

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "hcsmoe/assembly.h"
#include "hcsmoe/error.h"
#include "hcsmoe/shards.h"
#include "support/checksums.h"
#include "support/hdf5_file.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kept = 6;
constexpr int64_t several_files = 500'000;
constexpr int64_t unlimited = 5'000'000'000;
const fs::path demo = fs::path(TEST_DATA) / "demo" / "model";

std::string content(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  EXPECT_TRUE(stream) << file;
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// The bytes that a shard holds for a tensor: every tensor has others.
std::vector<std::byte> known_bytes(const std::string& name, size_t size) {
  uint32_t state = 2166136261u;
  for (const char c : name) state = (state ^ static_cast<unsigned char>(c)) * 16777619u;
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) {
    state = state * 1664525u + 1013904223u;
    byte = static_cast<std::byte>(state >> 24);
  }
  return bytes;
}

/// A model folder as in a Hugging Face cache (all links), with files beside the model, and a work folder with shards.
/// Made on rank 0; all ranks know where.
class Assemble : public ::testing::Test {
 protected:
  void SetUp() override {
    if (ranks.is_root()) {
      folder.emplace();
      root = folder->path().string();
      fs::create_directories(fs::path(root) / "model" / "onnx");
      for (const auto& entry : fs::directory_iterator(demo)) fs::create_symlink(entry.path(), model_folder() / entry.path().filename());
      for (const char* name : {"pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors", "model.gguf", "tf_model.x",
                               "LICENSE", "modeling_demo.py", ".gitattributes"}) {
        std::ofstream(model_folder() / name) << name << " of the original";
      }
      std::ofstream(model_folder() / "empty.txt");
      fs::create_symlink("nowhere", model_folder() / "broken");
    }
    ranks.broadcast(root, 0);
    checkpoint.emplace(Checkpoint::open(model_folder()));
    model = describe_model(*checkpoint);
    if (ranks.is_root()) {
      for (const int64_t layer : model.moe_layers()) write_shard(layer, layer, kept, checkpoint->fingerprint());
    }
    ranks.barrier();
  }
  void TearDown() override { ranks.barrier(); }

  fs::path model_folder() const { return fs::path(root) / "model"; }
  fs::path work() const { return fs::path(root) / "work"; }
  fs::path output() const { return fs::path(root) / "output"; }
  fs::path partial() const { return fs::path(root) / "output.partial"; }

  void write_shard(int64_t file_layer, int64_t layer, int64_t experts, const std::string& fingerprint) const {
    ShardWriter writer(shard_file(work(), file_layer), layer, {fingerprint, "plan"});
    for (const std::string& name : moe_tensor_names(model, layer, experts)) {
      TensorInfo info = checkpoint->info(name);
      if (info.shape[0] == model.experts) info.shape[0] = experts;
      writer.write(name, info.dtype, info.shape, known_bytes(name, static_cast<size_t>(info.elements() * info.dtype.bytes)));
    }
    writer.finish();
  }

  AssemblySummary run(const fs::path& to, int64_t max_shard_bytes = several_files,
                      const std::function<void(uint64_t)>& progress = {}) const {
    return assemble(ranks, *checkpoint, model, kept, max_shard_bytes, work(), to, {.progress = progress});
  }
  /// The message of the error that every rank has to throw, the same on all.
  std::string refused(const fs::path& to, const std::function<void(uint64_t)>& progress = {}) const {
    std::string message;
    try {
      run(to, several_files, progress);
      ADD_FAILURE() << "not refused";
    } catch (const Error& error) {
      message = error.what();
      EXPECT_EQ(error.exit_code(), ExitCode::user) << message;
      EXPECT_TRUE(error.collective()) << message;
    }
    std::string first = message;
    ranks.broadcast(first, 0);
    EXPECT_EQ(message, first);
    return message;
  }
  void expect_nothing_left() const {
    ranks.barrier();
    EXPECT_FALSE(fs::exists(fs::symlink_status(output())));
    EXPECT_FALSE(fs::exists(fs::symlink_status(partial())));
    ranks.barrier();
  }
  void on_root(const std::function<void()>& step) const {
    if (ranks.is_root()) step();
    ranks.barrier();
  }

  const Ranks ranks{MPI_COMM_WORLD};
  std::optional<TemporaryFolder> folder;
  std::string root;
  std::optional<Checkpoint> checkpoint;
  ModelDescription model;
};

TEST_F(Assemble, TheOutputIsACheckpoint) {
  int64_t reported = 0;
  const AssemblySummary summary = run(output(), several_files, [&](uint64_t bytes) { reported += static_cast<int64_t>(bytes); });
  ranks.all_reduce_sum(std::span(&reported, 1));
  EXPECT_EQ(reported, static_cast<int64_t>(summary.bytes));
  EXPECT_FALSE(fs::exists(partial()));

  const Checkpoint out = Checkpoint::open(output());
  EXPECT_EQ(static_cast<int64_t>(out.files().size()), summary.files);
  EXPECT_GT(summary.files, 3);
  std::set<std::string> merged, expected_names, names;
  for (const int64_t layer : model.moe_layers()) {
    for (const std::string& name : moe_tensor_names(model, layer, kept)) merged.insert(name);
  }
  for (const TensorInfo& info : checkpoint->tensors()) {
    const size_t at = info.name.find(".experts.");
    if (at == std::string::npos || std::stoi(info.name.substr(at + 9)) < kept) expected_names.insert(info.name);
  }
  uint64_t file_bytes = 0, total_size = 0;
  int64_t parameters = 0;
  for (const auto& file : out.files()) file_bytes += fs::file_size(file);
  for (const TensorInfo& info : out.tensors()) {
    names.insert(info.name);
    total_size += info.bytes();
    parameters += info.elements();
    const auto bytes = out.bytes(info.name);
    if (merged.contains(info.name)) {
      EXPECT_TRUE(std::ranges::equal(bytes, known_bytes(info.name, bytes.size()))) << info.name;
    } else {
      EXPECT_TRUE(std::ranges::equal(bytes, checkpoint->bytes(info.name))) << info.name;
      EXPECT_EQ(info.shape, checkpoint->info(info.name).shape) << info.name;
    }
  }
  EXPECT_EQ(names, expected_names);
  EXPECT_EQ(out.info("model.layers.1.mlp.gate.weight").shape, (std::vector<int64_t>{kept, 128}));
  EXPECT_EQ(file_bytes, summary.bytes);
  EXPECT_EQ(summary.tensors, static_cast<int64_t>(names.size()));

  const std::string index_text = content(output() / "model.safetensors.index.json");
  const auto index = nlohmann::json::parse(index_text);
  EXPECT_EQ(index["metadata"], (nlohmann::json{{"total_parameters", parameters}, {"total_size", total_size}}));
  EXPECT_EQ(index["weight_map"].size(), names.size());
  for (const TensorInfo& info : out.tensors()) {
    EXPECT_EQ(index["weight_map"][info.name], out.files()[static_cast<size_t>(info.file)].filename().string());
  }
  EXPECT_TRUE(index_text.starts_with("{\n  \"metadata\": {\n    \"total_parameters\": "));

  // The description of the output is that of the original, but for the number of experts.
  EXPECT_EQ(describe_model(out).experts, kept);
  std::string config = content(demo / "config.json");
  config.replace(config.find("\"num_experts\": 16"), 17, "\"num_experts\": 6");
  EXPECT_EQ(content(output() / "config.json"), config);
}

TEST_F(Assemble, OtherFilesAreCopiedOrLeftOut) {
  const AssemblySummary summary = run(output());
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(output())) {
    EXPECT_EQ(entry.symlink_status().type(), fs::file_type::regular) << entry.path();
    if (entry.path().extension() != ".safetensors") names.insert(entry.path().filename());
  }
  const std::set<std::string> copied = {
      ".gitattributes", "LICENSE", "empty.txt", "generation_config.json", "modeling_demo.py", "tokenizer.json", "tokenizer_config.json"};
  std::set<std::string> expected = copied;
  expected.insert({"config.json", "model.safetensors.index.json", "checksums.xxh128"});
  EXPECT_EQ(names, expected);
  EXPECT_EQ(summary.copied_files, static_cast<int64_t>(copied.size()));
  for (const std::string& name : copied) EXPECT_EQ(content(output() / name), content(model_folder() / name)) << name;
  EXPECT_EQ(summary.left_out,
            (std::vector<std::string>{"broken: a link that leads nowhere", "consolidated.safetensors: weights of the original",
                                      "model.gguf: weights of the original", "onnx: a folder",
                                      "pytorch_model.bin.index.json: weights of the original", "pytorch_model.bin: weights of the original",
                                      "tf_model.x: weights of the original"}));
}

TEST_F(Assemble, ChecksumsOfEveryFile) {
  const AssemblySummary summary = run(output());
  if (!ranks.is_root()) return;
  const auto files = parse_checksum_lines(content(output() / "checksums.xxh128"), "checksums");
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(output())) names.insert(entry.path().filename());
  names.erase("checksums.xxh128");
  ASSERT_EQ(files.size(), names.size());
  ASSERT_EQ(summary.checksums.size(), names.size());
  for (size_t i = 0; i < files.size(); ++i) {
    EXPECT_TRUE(names.contains(files[i].file));
    EXPECT_EQ(files[i].checksum, file_checksum(output() / files[i].file)) << files[i].file;
    EXPECT_EQ(summary.checksums[i], std::pair(files[i].file, files[i].checksum));
  }
}

TEST_F(Assemble, LinksToWhatIsNotAModelsAreLeftOut) {
  on_root([&] {
    std::ofstream(fs::path(root) / "secret") << "a key";
    for (const char* name : {"LICENSE.md", ".env", "same.json"}) std::ofstream(fs::path(root) / name) << "outside";
    fs::create_directories(fs::path(root) / "blobs");
    std::ofstream(fs::path(root) / "blobs" / "01ab") << "blob";
    fs::create_symlink("../secret", model_folder() / "vocab.txt");  // another name
    fs::create_symlink("../secret", model_folder() / "secret");     // not a kind of file that a model has
    fs::create_symlink("../.env", model_folder() / ".env");
    fs::create_symlink("../same.json", model_folder() / "same.json");
    fs::create_symlink("../blobs/01ab", model_folder() / "tokens.tiktoken");
    fs::create_symlink("empty.txt", model_folder() / "inside.txt");
  });
  ranks.barrier();
  const AssemblySummary summary = run(output());
  for (const char* name : {"same.json", "tokens.tiktoken", "inside.txt"}) EXPECT_TRUE(fs::exists(output() / name)) << name;
  for (const std::string name : {"vocab.txt", "secret", ".env"}) {
    EXPECT_FALSE(fs::exists(output() / name)) << name;
    EXPECT_TRUE(std::ranges::any_of(summary.left_out, [&](const std::string& line) { return line.starts_with(name + ": a link out of"); }))
        << name;
  }
}

TEST_F(Assemble, ACheckpointThatChangesIsRefused) {
  on_root([&] {
    const fs::path link = model_folder() / "model-00002-of-00003.safetensors", copy = fs::path(root) / "copy";
    fs::copy_file(link, copy);
    fs::remove(link);
    fs::rename(copy, link);
  });
  ranks.barrier();
  const std::string message = refused(output());
  EXPECT_NE(message.find("model-00002-of-00003.safetensors"), std::string::npos) << message;
  EXPECT_NE(message.find("replaced"), std::string::npos) << message;
  EXPECT_FALSE(fs::exists(partial()));
}

TEST_F(Assemble, GoesOnWithTheFilesThatAnInterruptedOneHasFinished) {
  const fs::path whole = fs::path(root) / "whole";
  const AssemblySummary expected = run(whole);
  ASSERT_GT(expected.files, ranks.size());
  const auto interrupted = [&](const std::string& job) {
    const auto stop = [] { throw CollectiveError("asked to stop", ExitCode::interrupted); };
    EXPECT_THROW(assemble(ranks, *checkpoint, model, kept, several_files, work(), output(), {.job = job, .after_round = stop}),
                 CollectiveError);
    ranks.barrier();
  };
  interrupted("a job");
  EXPECT_TRUE(fs::exists(partial()) && !fs::exists(output()));
  on_root([&] { std::ofstream(partial() / "model-00001-of-00099.safetensors") << "of no layout"; });
  std::vector<int64_t> bytes = {0};
  const auto count = [&](uint64_t n) { bytes[0] += static_cast<int64_t>(n); };
  AssemblySummary summary = assemble(ranks, *checkpoint, model, kept, several_files, work(), output(), {.job = "a job", .progress = count});
  EXPECT_EQ(summary.found, ranks.size());
  ranks.all_reduce_sum(bytes);
  EXPECT_EQ(static_cast<uint64_t>(bytes[0]), summary.bytes);
  const auto same_as_whole = [&] {
    for (const auto& entry : fs::directory_iterator(whole)) {
      EXPECT_TRUE(content(entry.path()) == content(output() / entry.path().filename())) << entry.path().filename();
    }
    EXPECT_EQ(std::distance(fs::directory_iterator(output()), {}), std::distance(fs::directory_iterator(whole), {}));
    fs::remove_all(output());
  };
  on_root(same_as_whole);

  interrupted("a job");
  summary = assemble(ranks, *checkpoint, model, kept, several_files, work(), output(), {.job = "another job"});
  EXPECT_EQ(summary.found, 0);
  on_root(same_as_whole);

  interrupted("a job");
  on_root([&] {
    const fs::path first = partial() / "model-00001-of-0000";
    for (const auto& entry : fs::directory_iterator(partial())) {
      if (!entry.path().string().starts_with(first.string())) continue;
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(-1, std::ios::end);
      file.put('\x7e');
    }
  });
  summary = assemble(ranks, *checkpoint, model, kept, several_files, work(), output(), {.job = "a job"});
  EXPECT_EQ(summary.found, ranks.size() - 1) << "a file whose bytes are others is written again";
  on_root(same_as_whole);
}

TEST_F(Assemble, OneFileHasNoIndex) {
  const AssemblySummary summary = run(output(), unlimited);
  EXPECT_EQ(summary.files, 1);
  EXPECT_EQ(fs::file_size(output() / "model.safetensors"), summary.bytes);
  EXPECT_FALSE(fs::exists(output() / "model.safetensors.index.json"));
  EXPECT_EQ(Checkpoint::open(output()).tensors().size(), static_cast<size_t>(summary.tensors));
}

TEST_F(Assemble, TheSameBytesFromAnyNumberOfRanks) {
  for (const int64_t limit : {unlimited, several_files, int64_t{100'000}}) {
    const fs::path together = fs::path(root) / ("together" + std::to_string(limit)),
                   alone = fs::path(root) / ("alone" + std::to_string(limit));
    run(together, limit);
    on_root([&] {
      assemble(Ranks(MPI_COMM_SELF), *checkpoint, model, kept, limit, work(), alone);
      size_t files = 0;
      for (const auto& entry : fs::directory_iterator(alone)) {
        ++files;
        EXPECT_TRUE(content(entry.path()) == content(together / entry.path().filename())) << entry.path().filename();
      }
      EXPECT_EQ(std::distance(fs::directory_iterator(together), {}), static_cast<std::ptrdiff_t>(files));
    });
  }
}

TEST_F(Assemble, AnExistingOutputIsRefusedAndStays) {
  on_root([&] {
    fs::create_directory(output());
    std::ofstream(output() / "precious") << "kept";
  });
  EXPECT_NE(refused(output()).find(output().string() + " exists"), std::string::npos);
  EXPECT_NE(refused(output() / "").find("exists"), std::string::npos);
  on_root([&] {
    EXPECT_EQ(content(output() / "precious"), "kept");
    EXPECT_EQ(std::distance(fs::directory_iterator(output()), {}), 1);
    fs::remove(output() / "precious");
  });
  refused(output());  // empty
  on_root([&] {
    fs::remove(output());
    fs::create_symlink("nowhere", output());
  });
  refused(output());
  on_root([&] { EXPECT_TRUE(fs::is_symlink(output())); });
}

TEST_F(Assemble, AStalePartialFolderIsReplaced) {
  on_root([&] {
    fs::create_directories(partial() / "deep");
    std::ofstream(partial() / "deep" / "junk") << "junk";
    std::ofstream(partial() / "model-00099-of-00099.safetensors") << "junk";
  });
  run(output() / "");  // a slash at the end names the same folder
  EXPECT_FALSE(fs::exists(partial()));
  EXPECT_FALSE(fs::exists(output() / "deep"));
  EXPECT_FALSE(fs::exists(output() / "model-00099-of-00099.safetensors"));
  EXPECT_TRUE(fs::exists(output() / "config.json"));
}

TEST_F(Assemble, ParentFoldersAreMade) {
  run(fs::path(root) / "a" / "b" / "output");
  EXPECT_TRUE(fs::exists(fs::path(root) / "a" / "b" / "output" / "config.json"));
}

TEST_F(Assemble, ADamagedShardIsRefused) {
  const std::string name = "model.layers.2.mlp.experts.3.up_proj.weight";
  const fs::path shard = shard_file(work(), 2);
  on_root([&] {
    const uint64_t offset = ShardReader(shard).info(name).begin + 100;
    std::fstream stream(shard, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(static_cast<std::streamoff>(offset));
    const char byte = static_cast<char>(stream.get() ^ 1);
    stream.seekp(static_cast<std::streamoff>(offset));
    stream.put(byte);
  });
  const std::string error = refused(output());
  EXPECT_NE(error.find(shard.string()), std::string::npos) << error;
  EXPECT_NE(error.find(name), std::string::npos) << error;
  expect_nothing_left();
}

TEST_F(Assemble, ShardsThatDoNotFitAreRefused) {
  const fs::path shard = shard_file(work(), 3);
  const auto expect_refused = [&](const std::string& text) {
    const std::string error = refused(output());
    EXPECT_NE(error.find(shard.string()), std::string::npos) << error;
    EXPECT_NE(error.find(text), std::string::npos) << error;
    expect_nothing_left();
  };
  on_root([&] { write_shard(3, 2, kept, checkpoint->fingerprint()); });
  expect_refused("holds layer 2, not 3");
  on_root([&] { write_shard(3, 3, kept, "of another model"); });
  expect_refused("another checkpoint");
  on_root([&] { write_shard(3, 3, kept + 1, checkpoint->fingerprint()); });
  expect_refused("model.layers.3.mlp.gate.weight is BF16 [7, 128], expected BF16 [6, 128]");
  on_root([&] { ShardWriter(shard, 3, {checkpoint->fingerprint(), "plan"}).finish(); });
  expect_refused("no dataset 'model.layers.3.mlp.gate.weight'");
  on_root([&] { fs::resize_file(shard, fs::file_size(shard) / 2); });
  expect_refused("");
  on_root([&] { fs::remove(shard); });
  expect_refused("");
}

/// A file size limit stops a write in the middle, as a full disk does, and needs no rights.
TEST_F(Assemble, AWriteThatFailsLeavesNothing) {
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = before;
  small.rlim_cur = 300'000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string error = refused(output());
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_NE(error.find("File too large"), std::string::npos) << error;
  EXPECT_NE(error.find("output.partial/model-0000"), std::string::npos) << error;
  expect_nothing_left();
  run(output());
  EXPECT_TRUE(fs::exists(output() / "config.json"));
}

/// A file system of a few megabytes. Only root may mount one: skipped without.
TEST_F(Assemble, AFullDisk) {
  const fs::path disk = fs::path(root) / "disk";
  int64_t mounted = 0;
  const auto mount_disk = [&](const char* size) {
    mounted = 0;
    on_root([&] {
      fs::create_directory(disk);
      mounted = ::mount("tmpfs", disk.c_str(), "tmpfs", 0, size) == 0;
    });
    mounted = ranks.all_reduce_max(mounted);
  };
  const auto expect_empty = [&] {
    ranks.barrier();
    EXPECT_FALSE(fs::exists(disk / "output"));
    EXPECT_FALSE(fs::exists(disk / "output.partial"));
    ranks.barrier();
  };
  const auto unmount_disk = [&] { on_root([&] { EXPECT_EQ(::umount(disk.c_str()), 0); }); };

  mount_disk("size=1m");
  if (!mounted) GTEST_SKIP() << "cannot mount a tmpfs here";
  std::string error = refused(disk / "output");
  EXPECT_NE(error.find("needs 3"), std::string::npos) << error;  // 3.0 MB, of the demo model with 6 of 16 experts
  EXPECT_NE(error.find("free"), std::string::npos) << error;
  expect_empty();
  unmount_disk();

  // There is room at first, and then another program takes it.
  mount_disk("size=6m");
  ASSERT_TRUE(mounted);
  bool filled = false;
  error = refused(disk / "output", [&](uint64_t) {
    if (filled || !ranks.is_root()) return;
    filled = true;
    std::ofstream(disk / "filler") << std::string(8 << 20, 'x');
  });
  EXPECT_NE(error.find("No space left on device"), std::string::npos) << error;
  expect_empty();
  on_root([&] { fs::remove(disk / "filler"); });
  run(disk / "output");
  EXPECT_TRUE(fs::exists(disk / "output" / "config.json"));
  ranks.barrier();
  unmount_disk();
}

}  // namespace
}  // namespace hcsmoe
