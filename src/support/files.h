#pragma once
// Files: whole reads with a bound, atomic writes, memory maps, hashes. RAII around every handle. Every failure is a UserError with the path
// and strerror (a missing file, a full disk, no permission are the user's to mend).

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace hcsmoe {

/// What tells a file from another of its name, and from itself once it is written to or cut.
struct FileState {
  uint64_t inode = 0, size = 0;
  int64_t seconds = 0, nanoseconds = 0;  // of its last change
  bool operator==(const FileState&) const = default;
};
/// UserError, which says what happened, unless the path still names the file in that state. Whoever reads a file for long asks this after
/// the last byte: what was read before belongs together then.
void require_unchanged(const std::filesystem::path&, const FileState& before);

/// An open file descriptor.
class File {
 public:
  static File open_read(const std::filesystem::path&);
  static File create(const std::filesystem::path&);       // O_CREAT | O_TRUNC, read and write
  static File open_append(const std::filesystem::path&);  // an existing file: read anywhere, write at its end
  File(File&&) noexcept;
  File& operator=(File&&) noexcept;
  ~File();
  int descriptor() const { return fd_; }
  uint64_t size() const;
  FileState state() const;
  void read_at(uint64_t offset,
               std::span<std::byte> out) const;  // all of it: loops over short reads and EINTR; the file ending early is an error
  void write(std::span<const std::byte> bytes);  // at the current end; loops likewise
  void sync() const;
  void close();  // checked, unlike the destructor's

 private:
  File(int fd, std::filesystem::path path) : fd_(fd), path_(std::move(path)) {}
  int fd_ = -1;
  std::filesystem::path path_;
};

std::string read_file(const std::filesystem::path&, uint64_t max_bytes);
/// Temporary name beside it, write, fsync, rename, fsync of the folder.
void write_file_atomically(const std::filesystem::path&, std::string_view content);
void sync_folder(const std::filesystem::path& folder);
/// Creates the folder and its parents.
void make_folder(const std::filesystem::path& folder);
/// Of all files below it; 0 if it is not there.
uint64_t bytes_in(const std::filesystem::path& folder);

/// A whole file mapped read only (MAP_SHARED). An empty file maps to an empty span. Bytes that cannot be read (any more) end whoever
/// touches them with SIGBUS: see support/lost_pages.h.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path&);
  MappedFile(MappedFile&&) noexcept;
  MappedFile& operator=(MappedFile&&) noexcept;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  /// Of the file when it was opened.
  const FileState& state() const { return state_; }
  /// Brings the range into the page cache and returns when it is there: false if some of it cannot be read (the file has become shorter, or
  /// its disk fails), which would end whoever reads the mapping with a signal. The pages stay in this process until advise_done.
  bool read_ahead(uint64_t begin, uint64_t end) const;
  void advise_done(uint64_t begin, uint64_t end) const;  // whole pages inside the range: out of this process, not out of the page cache

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  FileState state_;
};

/// XXH3-128 of everything added, as 32 hex digits.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  void add(std::span<const std::byte>);
  void add(std::string_view);
  std::string hex() const;

 private:
  void* state_;
};
uint64_t checksum64(std::span<const std::byte>);  // XXH3-64

}  // namespace hcsmoe
