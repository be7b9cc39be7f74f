#pragma once
// One run at a time in a folder. The lock is the kernel's (flock), which ends with its process however that ends, on file systems of the
// network too where they support it. Where they do not, the file tells: its holder writes a new count into it every few seconds, and who
// finds one of another host, or no support, watches for a while whether it moves. One that does not was left by a run that died.

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

namespace hcsmoe {

struct FolderLockTimes {
  std::chrono::milliseconds beat{4'000};    // between counts
  std::chrono::milliseconds watch{13'000};  // longer than three of them
};

class FolderLock {
 public:
  /// UserError: another run holds it; says which (host, process, since when). before_watching: told why it takes a while.
  FolderLock(const std::filesystem::path& file, const std::function<void(const std::string&)>& before_watching, FolderLockTimes times = {});
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hcsmoe
