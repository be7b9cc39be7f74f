#pragma once
// Shards: the merged experts and router of one layer in one HDF5 file, WORK/shards/layer_0003.h5. A dataset a tensor, under the tensor's
// final name, contiguous, with a checksum. Valid or absent, never half: written under a temporary name, synced, renamed.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hcsmoe/checkpoint.h"

namespace hcsmoe {

/// What a shard was made from; a shard of another origin is not reused.
struct ShardOrigin {
  std::string checkpoint;  // Checkpoint::fingerprint()
  std::string layer_plan;  // hash of the layer's clusters
  bool operator==(const ShardOrigin&) const = default;
};

std::filesystem::path shard_file(const std::filesystem::path& work, int64_t layer);

class ShardWriter {
 public:
  ShardWriter(const std::filesystem::path& file, int64_t layer, const ShardOrigin&);
  ~ShardWriter();  // without finish(): removes the temporary file
  ShardWriter(const ShardWriter&) = delete;
  void write(const std::string& name, const DType&, const std::vector<int64_t>& shape, std::span<const std::byte> bytes);
  void finish();  // flush, fsync, rename, fsync of the folder

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class ShardReader {
 public:
  /// Throws UserError: not there, not ours, damaged. Checks structure now, checksums in `read`.
  explicit ShardReader(const std::filesystem::path& file);
  ~ShardReader();
  ShardReader(ShardReader&&) noexcept;
  int64_t layer() const;
  const ShardOrigin& origin() const;
  const std::vector<TensorInfo>& tensors() const;  // begin/end: the dataset's byte range in the HDF5 file (contiguous)
  const TensorInfo& info(const std::string& name) const;
  /// Streams the dataset's bytes in pieces of at most 8 MiB to `sink`, then compares the checksum (UserError if it differs).
  void read(const std::string& name, const std::function<void(std::span<const std::byte>)>& sink) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hcsmoe
