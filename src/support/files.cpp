#include "support/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <utility>

#include "hcsmoe/error.h"
#include "support/lost_pages.h"

namespace hcsmoe {
namespace {

std::string hint_for(int error) {
  switch (error) {
    case ENOSPC:
      return "the disk is full: free some space, or choose another folder";
    case EDQUOT:
      return "your disk quota is used up: free some space, or choose another folder";
    case EFBIG:
      return "the file is larger than the file system or `ulimit -f` allows";
    case EROFS:
      return "the file system is mounted read only: choose another folder";
    case EMFILE:
      return "too many open files: raise the limit with `ulimit -n`";
    default:
      return "";
  }
}

[[noreturn]] void fail(const std::string& action, const std::filesystem::path& path, int error = errno) {
  throw UserError("cannot " + action + " " + path.string() + ": " + std::strerror(error), hint_for(error));
}

// Linux transfers at most 0x7ffff000 bytes a call.
constexpr size_t largest_transfer = size_t{1} << 30;

std::filesystem::path folder_of(const std::filesystem::path& path) { return path.has_parent_path() ? path.parent_path() : "."; }

FileState state_of(const struct stat& status) {
  return {status.st_ino, static_cast<uint64_t>(status.st_size), status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

}  // namespace

void require_unchanged(const std::filesystem::path& path, const FileState& before) {
  struct stat status {};
  std::string what;
  if (::stat(path.c_str(), &status) != 0) {
    what = std::string("the file cannot be found any more: ") + std::strerror(errno);
  } else if (const FileState now = state_of(status); now.inode != before.inode) {
    what = "the file was replaced by another one";
  } else if (now.size != before.size) {
    what = "the file had " + std::to_string(before.size) + " bytes and now has " + std::to_string(now.size);
  } else if (!(now == before)) {
    what = "the file was written to";
  } else {
    return;
  }
  throw UserError(path.string() + ": " + what + " while this program read it",
                  "what was made of it cannot be trusted: start again when no other program changes the file");
}

File File::open_read(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a named pipe must fail below instead of waiting for a writer. It changes nothing for regular files.
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail("open", path);
  File file(fd, path);
  struct stat status {};
  if (::fstat(fd, &status) != 0) fail("read the size of", path);
  if (S_ISDIR(status.st_mode)) throw UserError(path.string() + " is a folder, not a file");
  if (!S_ISREG(status.st_mode)) throw UserError(path.string() + " is not a regular file");
  return file;
}

File File::create(const std::filesystem::path& path) {
  int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) fail("create", path);
  return File(fd, path);
}

File File::open_append(const std::filesystem::path& path) {
  int fd = ::open(path.c_str(), O_RDWR | O_APPEND | O_CLOEXEC);
  if (fd < 0) fail("open", path);
  return File(fd, path);
}

File::File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

uint64_t File::size() const {
  struct stat status {};
  if (::fstat(fd_, &status) != 0) fail("read the size of", path_);
  return static_cast<uint64_t>(status.st_size);
}

FileState File::state() const {
  struct stat status {};
  if (::fstat(fd_, &status) != 0) fail("read the state of", path_);
  return state_of(status);
}

void File::read_at(uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    ssize_t n = ::pread(fd_, out.data(), std::min(out.size(), largest_transfer), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("read", path_);
    if (n == 0) {
      throw UserError(path_.string() + ": the file ends at byte " + std::to_string(offset) + ", " + std::to_string(out.size()) +
                          " bytes before what was to be read",
                      "is another program writing to it?");
    }
    offset += static_cast<uint64_t>(n);
    out = out.subspan(static_cast<size_t>(n));
  }
}

void File::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    ssize_t n = ::write(fd_, bytes.data(), std::min(bytes.size(), largest_transfer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("write", path_);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

void File::sync() const {
  if (::fsync(fd_) != 0) fail("bring to disk", path_);
}

void File::close() {
  // The descriptor is gone whatever close() returns; some file systems report a failed write only here.
  if (int fd = std::exchange(fd_, -1); fd >= 0 && ::close(fd) != 0 && errno != EINTR) fail("close", path_);
}

std::string read_file(const std::filesystem::path& path, uint64_t max_bytes) {
  File file = File::open_read(path);
  uint64_t size = file.size();
  if (size > max_bytes) {
    throw UserError(path.string() + " has " + std::to_string(size) + " bytes, more than the " + std::to_string(max_bytes) +
                    " that are accepted for such a file");
  }
  std::string content(size, '\0');
  file.read_at(0, std::as_writable_bytes(std::span(content)));
  return content;
}

void write_file_atomically(const std::filesystem::path& path, std::string_view content) {
  std::filesystem::path temporary = path;
  temporary += ".tmp";
  File file = File::create(temporary);
  try {
    file.write(std::as_bytes(std::span(content)));
    file.sync();
    file.close();
    if (::rename(temporary.c_str(), path.c_str()) != 0) fail("rename " + temporary.string() + " to", path);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  sync_folder(folder_of(path));
}

void sync_folder(const std::filesystem::path& folder) {
  int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail("open the folder", folder);
  int result = ::fsync(fd);
  int error = errno;
  ::close(fd);
  // Some network file systems cannot sync a folder and say EINVAL; there is nothing more to be done then.
  if (result != 0 && error != EINVAL) fail("bring to disk the folder", folder, error);
}

uint64_t bytes_in(const std::filesystem::path& folder) {
  std::error_code error;
  uint64_t bytes = 0;
  for (auto entry = std::filesystem::recursive_directory_iterator(folder, error); !error && entry != std::filesystem::end(entry);
       entry.increment(error)) {
    std::error_code gone;
    if (entry->is_regular_file(gone) && !entry->is_symlink(gone)) bytes += entry->file_size(gone);
  }
  return bytes;
}

void make_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail("create the folder", folder, error.value());
  if (!std::filesystem::is_directory(folder))
    throw UserError("cannot create the folder " + folder.string() + ": a file of that name exists");
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  File file = File::open_read(path);
  state_ = file.state();
  size_ = state_.size;
  if (size_ == 0) return;
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.descriptor(), 0);
  if (address == MAP_FAILED) {
    throw UserError("cannot map " + path.string() + " (" + std::to_string(size_) + " bytes): " + std::strerror(errno),
                    errno == ENOMEM ? "a mapped file needs address space, not memory: is `ulimit -v` set?" : "");
  }
  data_ = static_cast<const std::byte*>(address);
  watch_mapping(data_, size_, path.c_str());
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), state_(other.state_) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(state_, other.state_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!data_) return;
  forget_mapping(data_);
  ::munmap(const_cast<std::byte*>(data_), size_);
}

// The kernel reads little at one piece of advice, about 128 KiB or what the disk takes in one request, so advice comes in small steps that
// keep many requests waiting. Older kernels than 5.14 cannot populate; advice is all that they get.
bool MappedFile::read_ahead(uint64_t begin, uint64_t end) const {
  constexpr uint64_t step = uint64_t{128} << 10, waiting = uint64_t{16} << 20;
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  end = std::min<uint64_t>(end, size_);
  begin = begin / page * page;
  const auto advise = [&](uint64_t at, int what) {
    return ::madvise(const_cast<std::byte*>(data_ + at), std::min(step, end - at), what) == 0 || errno == EINVAL;
  };
  for (uint64_t at = begin, asked = begin; at < end; at += step) {
    for (; asked < std::min(end, at + waiting); asked += step) advise(asked, MADV_WILLNEED);
    while (!advise(at, MADV_POPULATE_READ)) {
      if (errno != EAGAIN && errno != EINTR) return false;
    }
  }
  return true;
}

// madvise is a hint: where a kernel does not know it, nothing is lost but speed, so its result is not looked at.
void MappedFile::advise_done(uint64_t begin, uint64_t end) const {
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const bool reaches_end = end >= size_;  // nobody else's bytes are on the last page
  begin = (begin + page - 1) / page * page;
  end = reaches_end ? size_ : end / page * page;
  if (begin < end) ::madvise(const_cast<std::byte*>(data_ + begin), end - begin, MADV_DONTNEED);
}

Hasher::Hasher() : state_(XXH3_createState()) {
  if (!state_) throw std::bad_alloc();
  XXH3_128bits_reset(static_cast<XXH3_state_t*>(state_));
}

Hasher::~Hasher() { XXH3_freeState(static_cast<XXH3_state_t*>(state_)); }

void Hasher::add(std::span<const std::byte> bytes) { XXH3_128bits_update(static_cast<XXH3_state_t*>(state_), bytes.data(), bytes.size()); }

void Hasher::add(std::string_view text) { add(std::as_bytes(std::span(text))); }

std::string Hasher::hex() const {
  XXH128_hash_t hash = XXH3_128bits_digest(static_cast<const XXH3_state_t*>(state_));
  char text[33];
  std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                static_cast<unsigned long long>(hash.low64));
  return text;
}

uint64_t checksum64(std::span<const std::byte> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

}  // namespace hcsmoe
