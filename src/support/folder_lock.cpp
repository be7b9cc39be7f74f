#include "support/folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <ctime>
#include <fstream>
#include <mutex>
#include <sstream>
#include <thread>

#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

constexpr size_t most_text = 1024;

std::string word_in(const char* file) {
  std::ifstream in(file);
  std::string word;
  in >> word;
  return word;
}

/// What the file says: "HOST BOOT PROCESS SINCE COUNT". BOOT is new each time a machine starts.
struct Holder {
  std::string host, boot, process, since;
  std::string text;  // all of it; empty: nobody, or who ended in order

  explicit Holder(std::string content) : text(std::move(content)) { std::istringstream(text) >> host >> boot >> process >> since; }
  std::string name() const { return "host " + host + ", process " + process + ", since " + since; }
};

std::string this_host() {
  char name[256] = {};
  if (::gethostname(name, sizeof name - 1) != 0 || name[0] == 0) return "unknown";
  return name;
}

std::string this_boot() {
  const std::string id = word_in("/proc/sys/kernel/random/boot_id");
  return id.empty() ? "unknown" : id;
}

std::string now() {
  char text[40];
  const std::time_t seconds = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&seconds, &utc);
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

}  // namespace

struct FolderLock::State {
  std::filesystem::path path;
  FolderLockTimes times;
  int descriptor = -1;
  std::string who;
  std::mutex mutex;
  std::condition_variable changed;
  bool end = false;
  std::thread beating;

  ~State() {
    if (descriptor >= 0) ::close(descriptor);
  }
  std::string content() const {
    char text[most_text];
    const ssize_t count = ::pread(descriptor, text, sizeof text, 0);
    return count > 0 ? std::string(text, static_cast<size_t>(count)) : std::string();
  }
  /// On a full disk the lock itself still holds; only hosts that do not see it need the text.
  bool write(const std::string& text) const {
    return ::pwrite(descriptor, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()) &&
           ::ftruncate(descriptor, static_cast<off_t>(text.size())) == 0;
  }
  [[noreturn]] void refuse(const Holder& holder) const {
    throw UserError(path.parent_path().string() + " is in use by another run" + (holder.text.empty() ? "" : " (" + holder.name() + ")"),
                    "wait for its end, or name another folder in `work`");
  }
  void beat() {
    std::unique_lock lock(mutex);
    for (uint64_t count = 1; !changed.wait_for(lock, times.beat, [&] { return end; }); ++count) write(who + std::to_string(count) + "\n");
  }
};

FolderLock::FolderLock(const std::filesystem::path& file, const std::function<void(const std::string&)>& before_watching,
                       FolderLockTimes times)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.path = file;
  s.times = times;
  s.descriptor = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (s.descriptor < 0) throw UserError("cannot lock " + file.string() + ": " + std::strerror(errno), "may you write there?");
  bool supported = true;
  if (::flock(s.descriptor, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) s.refuse(Holder(s.content()));
    supported = false;  // ENOLCK, ENOSYS, EOPNOTSUPP: a file system without locks
  }
  const Holder left(s.content());
  const std::string boot = this_boot();
  if (!left.text.empty() && (!supported || left.boot != boot)) {
    // On this machine the lock is enough, and a machine that has started anew runs nothing of before; another one may not see the lock.
    if (!supported || left.host != this_host()) {
      before_watching(file.string() + " was left by a run on " + left.name() + "; watching for " +
                      std::to_string(std::chrono::duration_cast<std::chrono::seconds>(times.watch).count()) + " s whether it still runs");
      const auto end = std::chrono::steady_clock::now() + times.watch;
      while (std::chrono::steady_clock::now() < end) {
        std::this_thread::sleep_for(times.watch / 50);
        if (s.content() != left.text) s.refuse(left);
      }
    }
  }
  s.who = this_host() + " " + boot + " " + std::to_string(::getpid()) + " " + now() + " ";
  s.write(s.who + "0\n");
  s.beating = std::thread([this] { state_->beat(); });
}

FolderLock::~FolderLock() {
  if (!state_ || !state_->beating.joinable()) return;
  {
    const std::lock_guard lock(state_->mutex);
    state_->end = true;
  }
  state_->changed.notify_all();
  state_->beating.join();
  state_->write("");
}

}  // namespace hcsmoe
