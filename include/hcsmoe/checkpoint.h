#pragma once
// A Hugging Face checkpoint folder, read only: config.json, *.safetensors (one file, or several with an index), and whatever else lies
// there. Files are mapped, their headers are checked in full before any tensor is used, and tensors are looked up by name and handed out as
// views of the mapped bytes. Nothing is read ahead of need: opening a checkpoint costs its headers. Everything wrong with a file is a
// UserError that names the file, the tensor and what was expected.

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

namespace hcsmoe {

class Ranks;

/// A safetensors element type: its name there ("BF16"), bytes an element, and the torch type (Undefined where torch is not needed).
struct DType {
  std::string name;
  int64_t bytes = 0;
  at::ScalarType torch = at::ScalarType::Undefined;
  bool operator==(const DType& other) const { return name == other.name; }
};
DType dtype_from_name(const std::string& safetensors_name);  // throws UserError on an unknown name
DType dtype_from_torch(at::ScalarType);

struct TensorInfo {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  int file = 0;        // index into Checkpoint::files()
  uint64_t begin = 0;  // byte range in the file (not in its data section)
  uint64_t end = 0;
  uint64_t bytes() const { return end - begin; }
  int64_t elements() const;
};

/// The checked header of one safetensors file. Also used by the fuzzers and by assembly.
struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;              // in the order of their bytes
  std::map<std::string, std::string> metadata;  // __metadata__
  uint64_t data_begin = 0;
};
/// Checks that the header is within the file and under 100 MB, its JSON has no duplicate names, dtypes are known, shapes times dtype size
/// equal byte ranges, and ranges cover the data without overlap or hole. `head`: the file's first bytes, at least 8 + header length.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head, uint64_t file_size, const std::string& file_name);

/// Bytes of a file that were read as one, and their checksum (XXH3-64).
struct RangeRead {
  int file = 0;  // index into Checkpoint::files()
  uint64_t begin = 0, end = 0, checksum = 0;
};

class Checkpoint {
 public:
  /// Opens and checks a folder. The index must name plain file names inside the folder; every tensor it lists must be where it says, and no
  /// tensor may be in two files. With an index, only the files that it names are read; else model.safetensors alone; else all
  /// *.safetensors.
  static Checkpoint open(const std::filesystem::path& folder);
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::filesystem::path& folder() const;
  const nlohmann::ordered_json& config() const;             // config.json, key order kept
  const std::vector<std::filesystem::path>& files() const;  // the safetensors files, in order of their names
  const std::vector<TensorInfo>& tensors() const;           // file by file, in the order of their bytes
  uint64_t total_bytes() const;                             // of all tensors

  bool has(const std::string& name) const;
  /// Throws UserError: the tensor is missing; names the folder and, where there is one, the nearest name.
  const TensorInfo& info(const std::string& name) const;
  /// The tensor's bytes in the mapped file. Valid as long as the checkpoint lives.
  std::span<const std::byte> bytes(const std::string& name) const;
  /// A view of the mapped bytes (read only: writing to it faults). Copies only where the file's offset is not aligned to the element size.
  at::Tensor tensor(const std::string& name) const;
  /// The same with a check that the shape is as expected (UserError that shows both).
  at::Tensor tensor(const std::string& name, const std::vector<int64_t>& shape) const;

  /// Brings bytes begin .. end of files()[file] into the page cache and notes them (note_read). Any thread. UserError: they cannot be read
  /// (any more).
  void read_ahead(int file, uint64_t begin, uint64_t end) const;
  /// Notes what was read from byte `begin` on. Any thread. UserError: other bytes were read there before.
  void note_read(int file, uint64_t begin, std::span<const std::byte>) const;
  /// What was noted on this rank, in order.
  std::vector<RangeRead> ranges_read() const;
  /// UserError: a file, or one of those that hold these tensors, is not what it was when the checkpoint was opened: replaced, cut, written
  /// to. Who makes something lasting of a checkpoint's bytes asks after the last of them.
  void require_unchanged() const;
  void require_unchanged(const std::vector<std::string>& names) const;
  /// A hint: the bytes are not needed any more (leave resident memory; the page cache may keep them).
  void done_with(const std::string& name) const;

  /// One line a tensor: name, type, shape and place. Ranks that have equal lines may exchange tensors.
  std::string tensor_lines() const;
  /// 32 hex digits that change when config.json, a tensor's name, type or shape, or sampled bytes of any tensor change.
  std::string fingerprint() const;

 private:
  struct State;
  explicit Checkpoint(std::unique_ptr<State>);
  std::unique_ptr<State> state_;
};

/// What all ranks have read of a file: how many bytes, and a checksum of them (of the checksums of its ranges, 32 hex digits) that does
/// not depend on the number of ranks.
struct FileRead {
  std::string file;  // its name
  uint64_t bytes = 0;
  std::string checksum;
};
/// Collective; the result is rank 0's. UserError: two ranks have read different bytes at one place (their nodes see different files).
std::vector<FileRead> files_read(const Checkpoint&, const Ranks&);

}  // namespace hcsmoe
