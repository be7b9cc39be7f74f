// Streams of weights on every number of ranks that ctest runs this with: in the mapped files, and over devices of the host.

#include "hcsmoe/weight_stream.h"

#include <ATen/ops/from_blob.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <set>

#include "checkpoint/layer_layout.h"
#include "checkpoint/read_ahead.h"
#include "support/files.h"
#include "support/host_link.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

using std::chrono::milliseconds;

constexpr int64_t L = 6;

std::vector<std::byte> random_bytes(size_t count, uint64_t seed) {
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<std::byte>(seed >> 56);
  }
  return bytes;
}

/// A checkpoint of two files that all ranks see: L layers of tensors of odd sizes, each layer in both files, and two tensors of none.
class WeightStreams : public testing::Test {
 protected:
  WeightStreams() {
    std::string path;
    if (ranks.is_root()) {
      folder.emplace();
      path = folder->path().string();
      write();
    }
    ranks.broadcast(path, 0);
    at = path;
    checkpoint.emplace(Checkpoint::open(at));
    for (int64_t l = 0; l < L; ++l) {
      for (int64_t i = 0; i < 5; ++i) layers[static_cast<size_t>(l)].push_back(name(l, i));
    }
    for (const auto& names : layers) largest = std::max(largest, layer_layout(*checkpoint, names).bytes);
  }
  ~WeightStreams() override { ranks.barrier(); }  // the folder goes away

  static std::string name(int64_t layer, int64_t i) { return "layer." + std::to_string(layer) + "." + std::to_string(i); }
  static int64_t size_of(int64_t layer, int64_t i) { return i == 4 ? 1 : 1000 * (layer + 1) + 3333 * i + 7; }
  void write() const {
    write_text(*folder / "config.json", "{}");
    std::vector<RawTensor> first, second;
    const auto add = [](std::vector<RawTensor>& file, const std::string& tensor, const std::string& type, int64_t elements, size_t width) {
      file.push_back({tensor, type, {elements}, random_bytes(static_cast<size_t>(elements) * width, std::hash<std::string>()(tensor))});
    };
    add(first, "embedding", "F32", 500, 4);
    for (int64_t l = 0; l < L; ++l) {
      for (int64_t i : {3, 0, 2}) add(first, name(l, i), i == 2 ? "F32" : "BF16", size_of(l, i), i == 2 ? 4 : 2);
    }
    for (int64_t l = L - 1; l >= 0; --l) {
      for (int64_t i : {4, 1}) add(second, name(l, i), "BF16", size_of(l, i), 2);
    }
    add(second, "norm", "F32", 33, 4);
    write_safetensors(*folder / "a.safetensors", first);
    write_safetensors(*folder / "b.safetensors", second);
  }
  std::vector<std::byte> expected(const std::string& tensor) const {
    const auto bytes = checkpoint->bytes(tensor);
    return {bytes.begin(), bytes.end()};
  }
  static std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
    return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
  }
  void expect_layer(const WeightStream& stream, int64_t layer) const {
    for (const std::string& tensor : layers[static_cast<size_t>(layer)]) {
      const at::Tensor found = stream.tensor(tensor);
      EXPECT_EQ(found.sizes(), checkpoint->tensor(tensor).sizes());
      EXPECT_EQ(found.scalar_type(), checkpoint->tensor(tensor).scalar_type());
      EXPECT_TRUE(std::ranges::equal(bytes_of(found), expected(tensor))) << tensor << " on rank " << ranks.rank();
    }
  }
  std::shared_ptr<HostLink> use_host_link() {
    auto link = std::make_shared<HostLink>();
    ranks.use_device(link);
    return link;
  }
  static StreamOptions options(uint64_t piece, uint64_t read_ahead, milliseconds limit = milliseconds(20000)) {
    StreamOptions result;
    result.piece = piece;
    result.read_ahead = read_ahead;
    result.limit = limit;
    return result;
  }
  std::unique_ptr<WeightStream> stream(const StreamOptions& how) { return stream_weights(*checkpoint, layers, ranks, how); }
  /// The error of a whole pass, if there is one: its text, and whether it is a UserError.
  struct Outcome {
    std::string text;
    bool user = false;
    int64_t layers_seen = 0;
  };
  Outcome pass(const StreamOptions& how) {
    Outcome outcome;
    try {
      const auto weights = stream(how);
      for (int64_t l = 0; l < L; ++l) {
        weights->begin_layer(l);
        expect_layer(*weights, l);
        ++outcome.layers_seen;
      }
    } catch (const Error& error) {
      outcome.text = error.what();
      outcome.user = error.exit_code() == ExitCode::user;
    }
    return outcome;
  }
  /// On how many ranks something holds.
  int64_t count(bool here) const {
    int64_t number = here;
    ranks.all_reduce_sum({&number, 1});
    return number;
  }

  Ranks ranks{MPI_COMM_WORLD};
  std::optional<TemporaryFolder> folder;  // on rank 0
  std::filesystem::path at;
  std::optional<Checkpoint> checkpoint;
  std::vector<std::vector<std::string>> layers{L};
  uint64_t largest = 0;  // of the layers' bytes in memory
};

void expect_has(const std::string& text, const std::string& part) { EXPECT_NE(text.find(part), std::string::npos) << text; }

}  // namespace

TEST_F(WeightStreams, MappedFilesGiveTheSameBytes) {
  for (const uint64_t piece : {1000u, 4096u, 1u << 20}) {
    for (const uint64_t read_ahead : {uint64_t{0}, uint64_t{50'000}, uint64_t{1} << 30}) {
      const Outcome outcome = pass(options(piece, read_ahead));
      EXPECT_EQ(outcome.text, "");
      EXPECT_EQ(outcome.layers_seen, L);
    }
  }
}

TEST_F(WeightStreams, DevicesGetTheSameBytes) {
  for (const uint64_t piece : {uint64_t{1000}, uint64_t{4096}, uint64_t{1} << 20}) {  // from many pieces a layer to one
    for (const uint64_t read_ahead : {uint64_t{0}, uint64_t{1} << 18}) {
      const auto link = use_host_link();
      link->copy_takes = milliseconds(piece < 4096 ? 0 : 3);
      const Outcome outcome = pass(options(piece, read_ahead));
      EXPECT_EQ(outcome.text, "");
      EXPECT_EQ(outcome.layers_seen, L);
      EXPECT_FALSE(link->aborted());
      EXPECT_LE(link->most_device_bytes(), 2 * largest) << "more than two layers on the device";
      const uint64_t share = read_ahead / static_cast<uint64_t>(ranks.local_size());
      EXPECT_LE(link->pinned_bytes(), std::max(2 * piece, share)) << "more read ahead than allowed";
    }
  }
}

TEST_F(WeightStreams, ALayerStaysWhileItIsComputedWith) {
  const auto link = use_host_link();
  const auto weights = stream(options(5000, 1 << 20));
  std::vector<char> right(L, 0);
  for (int64_t l = 0; l < L; ++l) {
    weights->begin_layer(l);
    const at::Tensor tensor = weights->tensor(name(l, 2));
    // A kernel that is still queued when the next layer but one is asked for; it reads at its end.
    link->compute(milliseconds(20),
                  [&, tensor, l] { right[static_cast<size_t>(l)] = std::ranges::equal(bytes_of(tensor), expected(name(l, 2))); });
  }
  const auto done = link->record(DeviceLink::Stream::compute);
  wait_for(*link, *done, "the kernels", milliseconds(20000));
  EXPECT_EQ(right, std::vector<char>(L, 1));
}

TEST_F(WeightStreams, OneLayerIsThereAtATime) {
  for (const bool device : {false, true}) {
    if (device) use_host_link();
    const auto weights = stream(options(4096, 0));
    EXPECT_THROW(weights->begin_layer(1), Error);
    weights->begin_layer(0);
    EXPECT_THROW(weights->begin_layer(0), Error);
    EXPECT_THROW(weights->begin_layer(2), Error);
    expect_error<Error>([&] { weights->tensor(name(1, 0)); }, {name(1, 0), "layer 0"});
    EXPECT_TRUE(std::ranges::equal(bytes_of(weights->tensor("norm")), expected("norm")));  // of no layer
    expect_error<UserError>([&] { weights->tensor("nrom"); }, {"has no tensor", "nrom"});
    for (int64_t l = 1; l < L; ++l) weights->begin_layer(l);
    EXPECT_THROW(weights->begin_layer(L), Error);
  }
}

TEST_F(WeightStreams, MayGoAwayAtAnyTime) {
  for (int64_t layers_used = 0; layers_used < 4; ++layers_used) {
    for (const bool device : {false, true}) {
      std::shared_ptr<HostLink> link;
      if (device) (link = use_host_link())->copy_takes = milliseconds(2);
      const auto weights = stream(options(500, uint64_t{1} << 30));
      for (int64_t l = 0; l < layers_used; ++l) weights->begin_layer(l);
    }
    ranks.use_device(nullptr);
  }
}

TEST_F(WeightStreams, AFileThatBecameShorterIsTheErrorOfWhoReadsIt) {
  ranks.barrier();
  if (ranks.is_root()) {
    const uint64_t kept = checkpoint->info(name(3, 3)).begin;
    std::filesystem::resize_file(at / "a.safetensors", kept);  // layer 3 and all later ones
  }
  ranks.barrier();
  const auto only_begun = [&](const StreamOptions& how) {
    Outcome outcome;
    try {
      const auto weights = stream(how);
      for (int64_t l = 0; l < L; ++l) {
        weights->begin_layer(l);
        ++outcome.layers_seen;
      }
    } catch (const Error& error) {
      outcome.text = error.what();
      outcome.user = error.exit_code() == ExitCode::user;
    }
    return outcome;
  };
  {
    const Outcome mapped = only_begun(options(4096, 1 << 20));
    if (ranks.size() == 1) {
      EXPECT_EQ(mapped.layers_seen, 3);
      EXPECT_TRUE(mapped.user);
      expect_has(mapped.text, "a.safetensors");
      expect_has(mapped.text, "now has");
    }
    EXPECT_GE(count(mapped.user), 1);
  }
  const auto link = use_host_link();
  const Outcome outcome = only_begun(options(4096, 1 << 20, milliseconds(1500)));
  if (ranks.rank() == 3 % ranks.size()) {  // the owner: it looks for layer 3 when layer 2 begins
    EXPECT_TRUE(outcome.user) << outcome.text;
    expect_has(outcome.text, "a.safetensors");
    expect_has(outcome.text, "the file ends at byte");
    EXPECT_EQ(outcome.layers_seen, 2);
  } else {
    EXPECT_FALSE(outcome.user);
    expect_has(outcome.text, "layer 3 from rank " + std::to_string(3 % ranks.size()) + " has not come within 1.5");
    EXPECT_EQ(outcome.layers_seen, 3);
  }
  EXPECT_TRUE(link->aborted());
}

TEST_F(WeightStreams, AFailingDiskIsTheErrorOfWhoReadsIt) {
  ranks.barrier();
  if (ranks.is_root()) {  // reading a process's memory at these places is an input/output error
    std::filesystem::rename(at / "b.safetensors", at / "b");
    std::filesystem::create_symlink("/proc/self/mem", at / "b.safetensors");
  }
  ranks.barrier();
  const auto link = use_host_link();
  const Outcome outcome = pass(options(4096, 1 << 20, milliseconds(1500)));
  EXPECT_EQ(outcome.layers_seen, 0);
  if (ranks.is_root()) {
    EXPECT_TRUE(outcome.user);
    expect_has(outcome.text, "b.safetensors: Input/output error");
  }
  EXPECT_FALSE(outcome.text.empty());
  EXPECT_TRUE(link->aborted());
}

TEST_F(WeightStreams, ARefusedCollectiveEndsAllRanks) {
  if (ranks.size() == 1) return;
  const auto link = use_host_link();
  const int last = ranks.size() - 1;
  if (ranks.rank() == last) link->failing_call = 1;
  const Outcome outcome = pass(options(largest, 1 << 20, milliseconds(1000)));  // a piece a layer: call 1 is layer 1
  EXPECT_FALSE(outcome.text.empty()) << "rank " << ranks.rank();
  if (ranks.rank() == last) {
    EXPECT_EQ(outcome.text, "a collective was refused");
  }
  EXPECT_TRUE(link->aborted());
  EXPECT_LT(outcome.layers_seen, L);
}

TEST_F(WeightStreams, AnErrorOnTheWayEndsTheRankThatHearsOfIt) {
  if (ranks.size() == 1) return;
  const auto link = use_host_link();
  link->async_error_at = 2;
  const Outcome outcome = pass(options(largest, 1 << 20));  // long before its limit
  EXPECT_EQ(outcome.text, "a collective failed on the way");
  EXPECT_EQ(outcome.layers_seen, 2);
  EXPECT_TRUE(link->aborted());
}

TEST_F(WeightStreams, ADeadRankEndsTheOthers) {
  if (ranks.size() == 1) return;
  const auto link = use_host_link();
  if (ranks.is_root()) {  // gives layer 0, and then nothing more
    link->silent_from = 1;
    stream(options(largest, 1 << 20, milliseconds(1000)))->begin_layer(0);
  } else {
    const Outcome outcome = pass(options(largest, 1 << 20, milliseconds(1000)));
    EXPECT_FALSE(outcome.user);
    expect_has(outcome.text, "has not come within 1");  // its own layer, which rank 0 does not take, or rank 0's next
    EXPECT_TRUE(link->aborted());
  }
}

TEST_F(WeightStreams, TensorsOfDevicesAreSummedAndBroadcastThere) {
  const auto link = use_host_link();
  const int64_t size = ranks.size(), rank = ranks.rank();
  const auto memory = link->device_memory(3 * sizeof(int64_t));
  ASSERT_TRUE(link->holds(memory.get()));
  ASSERT_TRUE(link->holds(memory.get() + 23));
  ASSERT_FALSE(link->holds(memory.get() + 24));
  auto* const values = reinterpret_cast<int64_t*>(memory.get());
  const at::Tensor there = at::from_blob(values, {3}, at::TensorOptions().dtype(at::kLong));
  std::vector<int64_t> of_host = {rank, 2, 3};
  const at::Tensor here = at::from_blob(of_host.data(), {3}, at::TensorOptions().dtype(at::kLong));

  const auto fill = [&] {
    values[0] = rank;
    values[1] = int64_t{1} << 60;
    values[2] = -1;
  };
  link->compute(milliseconds(10), fill);  // a sum waits for what kernels have queued
  ranks.all_reduce_sums(std::vector<at::Tensor>{there, here, there});
  wait_for(*link, *link->record(DeviceLink::Stream::compute), "the kernel", milliseconds(20000));  // one rank sums nothing
  const int64_t sum = size * (size - 1) / 2, again = size == 1 ? 1 : size;
  EXPECT_EQ(values[0], sum * again);
  EXPECT_EQ(values[2], -size * again);
  EXPECT_EQ(of_host, (std::vector<int64_t>{sum, 2 * size, 3 * size}));

  fill();
  ranks.reduce_sum(there, static_cast<int>(size) - 1);
  if (rank == size - 1) {
    EXPECT_EQ(values[0], sum);
  }
  fill();
  ranks.broadcast(there, static_cast<int>(size) - 1);
  EXPECT_EQ(values[0], size - 1);
  EXPECT_THROW(ranks.all_reduce_sums(std::vector<at::Tensor>{there.to(at::kFloat)}), Error);
}

TEST(ReadAhead, ReadsInOrderWhereThereIsRoom) {
  std::atomic<size_t> room{2};
  std::mutex mutex;
  std::vector<size_t> read;
  ReadAhead reader(
      5, [&](size_t piece) { return piece < room; },
      [&](size_t piece) {
        const std::lock_guard lock(mutex);
        read.push_back(piece);
      });
  reader.wait_for(2, milliseconds(10000));
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_EQ(reader.pieces_read(), 2u);
  EXPECT_THROW(reader.wait_for(3, milliseconds(30)), Error);  // no progress
  room = 5;
  reader.wait_for(5, milliseconds(10000));
  EXPECT_EQ(read, (std::vector<size_t>{0, 1, 2, 3, 4}));
}

TEST(ReadAhead, PiecesBeforeAnErrorCount) {
  ReadAhead reader(
      5, [](size_t) { return true; },
      [](size_t piece) {
        if (piece == 3) throw UserError("piece 3", "mend it");
      });
  reader.wait_for(3, milliseconds(10000));
  for (int twice = 0; twice < 2; ++twice) expect_error<UserError>([&] { reader.wait_for(4, milliseconds(10000)); }, {"piece 3", "mend it"});
  EXPECT_EQ(reader.pieces_read(), 3u);
  reader.wait_for(2, milliseconds(10000));
}

TEST_F(WeightStreams, PiecesCoverALayerOnce) {
  for (const uint64_t largest_piece : {uint64_t{100}, uint64_t{4096}, uint64_t{1} << 20}) {
    for (int64_t l = 0; l < L; ++l) {
      const LayerLayout layout = layer_layout(*checkpoint, layers[static_cast<size_t>(l)]);
      std::set<std::string> placed;
      uint64_t end = 0;
      for (const PlacedTensor& tensor : layout.tensors) {
        EXPECT_EQ(tensor.at % 256, 0u);
        EXPECT_GE(tensor.at, end);
        end = tensor.at + tensor.info->bytes();
        placed.insert(tensor.info->name);
      }
      EXPECT_EQ(end, layout.bytes);
      EXPECT_EQ(placed, std::set<std::string>(layers[static_cast<size_t>(l)].begin(), layers[static_cast<size_t>(l)].end()));

      std::vector<std::byte> memory(layout.bytes);
      uint64_t covered = 0, read = 0;
      for (const Piece& piece : layer_pieces(layout, l, largest_piece)) {
        EXPECT_EQ(piece.layer, l);
        EXPECT_EQ(piece.begin, covered);
        EXPECT_LE(piece.end - piece.begin, largest_piece);
        covered = piece.end;
        for (const FileRange& range : piece.ranges) {
          const uint64_t bytes = range.end - range.begin;
          EXPECT_GE(range.at, piece.begin);
          ASSERT_LE(range.at + bytes, piece.end);
          File::open_read(checkpoint->files()[static_cast<size_t>(range.file)]).read_at(range.begin, {memory.data() + range.at, bytes});
          read += bytes;
        }
      }
      EXPECT_EQ(covered, layout.bytes);
      uint64_t wanted = 0;
      for (const PlacedTensor& tensor : layout.tensors) {
        const auto bytes = expected(tensor.info->name);
        EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), memory.begin() + static_cast<int64_t>(tensor.at))) << tensor.info->name;
        wanted += bytes.size();
      }
      EXPECT_EQ(read, wanted);
    }
  }
}

}  // namespace hcsmoe
