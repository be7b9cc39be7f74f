#pragma once
// HDF5 files as this project writes them: a format tag, string and integer attributes, contiguous datasets each with an XXH3-64 checksum.
// The rest of the file is under a checksum as well (hdf5_seal.h).
// Written under a temporary name, synced and renamed. RAII around every handle; the HDF5 error stack is folded into the message.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace hcsmoe {

/// Element types by their safetensors names: F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL.
struct Hdf5Dataset {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // of the contiguous bytes in the file
  uint64_t bytes = 0;
  uint64_t checksum = 0;
};

class Hdf5Writer {
 public:
  Hdf5Writer(const std::filesystem::path& file, const std::string& format);
  ~Hdf5Writer();  // without finish(): removes the temporary file
  Hdf5Writer(const Hdf5Writer&) = delete;
  void attribute(const std::string& name, const std::string& value);
  void attribute(const std::string& name, int64_t value);
  void dataset(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape, std::span<const std::byte> bytes);
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class Hdf5Reader {
 public:
  /// UserError unless the file is whole, HDF5, of this format, and every dataset is contiguous with bytes inside the file.
  Hdf5Reader(const std::filesystem::path& file, const std::string& format);
  ~Hdf5Reader();
  Hdf5Reader(Hdf5Reader&&) noexcept;
  std::string text(const std::string& attribute) const;
  int64_t integer(const std::string& attribute) const;
  const std::vector<Hdf5Dataset>& datasets() const;  // by name
  bool has(const std::string& name) const;
  const Hdf5Dataset& info(const std::string& name) const;
  /// Bytes in pieces of at most 8 MiB, then the checksum is compared (UserError).
  void read(const std::string& name, const std::function<void(std::span<const std::byte>)>& sink) const;
  std::vector<std::byte> read(const std::string& name) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hcsmoe
