// Two runs in one folder: of one machine, after a kill, and from a host that does not see the lock.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include "hcsmoe/error.h"
#include "support/files.h"
#include "support/folder_lock.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;

class Lock : public testing::Test {
 protected:
  Lock() : file_(fs::temp_directory_path() / ("hcsmoe_lock_" + std::to_string(::getpid()))) { fs::remove(file_); }
  ~Lock() override { fs::remove(file_); }
  void take() {
    lock_.emplace(
        file_, [this](const std::string& line) { said_ += line; },
        FolderLockTimes{std::chrono::milliseconds(20), std::chrono::milliseconds(400)});
  }
  void leave_text(const std::string& text) { std::ofstream(file_) << text; }

  fs::path file_;
  std::string said_;
  std::optional<FolderLock> lock_;
};

TEST_F(Lock, IsOfOneProcessAtATime) {
  const pid_t child = ::fork();
  if (child == 0) {
    take();
    ::pause();
    ::_exit(0);
  }
  while (!fs::exists(file_) || read_file(file_, 1000).empty()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  try {
    take();
    FAIL() << "two runs hold the lock";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("process " + std::to_string(child)), std::string::npos) << error.what();
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_FALSE(read_file(file_, 1000).empty()) << "it died without cleaning up";
  take();
  EXPECT_EQ(said_, "") << "on one machine nothing is to be watched";
}

TEST_F(Lock, IsGivenBack) {
  take();
  EXPECT_NE(read_file(file_, 1000), "");
  lock_.reset();
  EXPECT_EQ(read_file(file_, 1000), "");
  take();
}

TEST_F(Lock, OfADeadRunOnAnotherHostIsTakenOver) {
  leave_text("node17 11111111-2222 4711 2026-01-01T00:00:00Z 12\n");
  take();
  EXPECT_NE(said_.find("node17, process 4711, since 2026-01-01T00:00:00Z"), std::string::npos) << said_;
}

TEST_F(Lock, OfARunOnAnotherHostIsRespected) {
  leave_text("node17 11111111-2222 4711 2026-01-01T00:00:00Z 0\n");
  std::atomic<bool> end{false};
  std::thread other([&] {
    for (int count = 1; !end; ++count) {
      leave_text("node17 11111111-2222 4711 2026-01-01T00:00:00Z " + std::to_string(count) + "\n");
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
    }
  });
  EXPECT_THROW(take(), UserError);
  end = true;
  other.join();
}

TEST_F(Lock, IsCountedUp) {
  take();
  const std::string before = read_file(file_, 1000);
  for (int i = 0; i < 500 && read_file(file_, 1000) == before; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_NE(read_file(file_, 1000), before);
}

TEST_F(Lock, NeedsAFolderThatCanBeWritten) {
  file_ /= "no such folder";
  EXPECT_THROW(take(), UserError);
}

}  // namespace
}  // namespace hcsmoe
