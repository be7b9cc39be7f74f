#pragma once
// What the fuzz targets share. A target is one parser: it is given bytes, as a file or as text, and may answer with what it has read or
// with a UserError. Everything else (another exception, a crash, a finding of a sanitizer, an input that takes too long or too much memory)
// ends it.

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "hcsmoe/error.h"

namespace hcsmoe::fuzz {

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "fuzz: not so: %s\n", what);
  std::abort();
}

/// Runs a parser; HCSMOE_FUZZ_SHOW=1 in the environment prints what it says. An error must be a message that can be shown: short, and
/// without the zero byte that would cut it.
template <class Parser>
int answers(Parser&& parse) {
  constexpr size_t longest_message = 20'000;
  try {
    parse();
  } catch (const UserError& error) {
    const std::string what = error.what();
    if (std::getenv("HCSMOE_FUZZ_SHOW")) std::fprintf(stderr, "%s\n", what.c_str());
    require(!what.empty() && what.size() <= longest_message, "a message is short");
    require(what.find('\0') == std::string::npos, "a message has no zero byte");
  }
  return 0;
}

inline std::string_view text(const uint8_t* data, size_t size) { return {reinterpret_cast<const char*>(data), size}; }

/// A file that can be opened by paths of any names, in a folder of its own below HCSMOE_FUZZ_FOLDER (default: /tmp).
class OpenFile {
 public:
  OpenFile() {
    const char* const parent = std::getenv("HCSMOE_FUZZ_FOLDER");
    folder_ = std::filesystem::path(parent ? parent : "/tmp") / ("hcsmoe-fuzz-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    descriptor_ = ::open((folder_ / "content").c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    require(descriptor_ >= 0, "the file can be made");
  }
  ~OpenFile() { std::filesystem::remove_all(folder_); }
  OpenFile(const OpenFile&) = delete;

  /// A path of that name, which leads to the file.
  std::filesystem::path path(const std::string& name) {
    const std::filesystem::path link = folder_ / name;
    if (!std::filesystem::is_symlink(link)) std::filesystem::create_symlink("content", link);
    return link;
  }
  const std::filesystem::path& folder() const { return folder_; }
  void fill(std::string_view content) {
    require(::ftruncate(descriptor_, 0) == 0, "ftruncate");
    for (size_t done = 0; done < content.size();) {
      const ssize_t count = ::pwrite(descriptor_, content.data() + done, content.size() - done, static_cast<off_t>(done));
      require(count > 0, "pwrite");
      done += static_cast<size_t>(count);
    }
  }

 private:
  std::filesystem::path folder_;
  int descriptor_ = -1;
};

}  // namespace hcsmoe::fuzz
