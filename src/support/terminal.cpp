#include "support/terminal.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>

namespace hcsmoe {
namespace {

/// A descriptor of the terminal that shows our stderr, or -1.
int open_terminal() {
  const char* type = std::getenv("TERM");
  if (type && std::string(type) == "dumb") return -1;  // shows a carriage return as it likes
  if (isatty(STDERR_FILENO)) return fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
  const std::string parent = "/proc/" + std::to_string(getppid());
  std::string name;
  std::getline(std::ifstream(parent + "/comm"), name);
  if (name != "mpirun" && name != "mpiexec" && name != "orterun" && name != "prterun") return -1;
  const int descriptor = open((parent + "/fd/2").c_str(), O_RDONLY | O_NOCTTY | O_CLOEXEC);
  if (descriptor >= 0 && !isatty(descriptor)) {
    close(descriptor);
    return -1;
  }
  return descriptor;
}

}  // namespace

Terminal::Terminal() : descriptor_(open_terminal()) {}

Terminal::~Terminal() {
  if (descriptor_ >= 0) close(descriptor_);
}

int Terminal::width() const {
  winsize size{};
  if (descriptor_ < 0 || ioctl(descriptor_, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

void Terminal::print(const std::string& text) {
  const std::lock_guard lock(mutex_);
  if (status_.empty()) return write(text + "\n");
  write("\r" + std::string(status_.size(), ' ') + "\r" + text + "\n" + status_);
}

void Terminal::show(const std::string& status) {
  if (!interactive()) return;
  const std::lock_guard lock(mutex_);
  const std::string cut = status.substr(0, static_cast<size_t>(width() - 1));  // the last column would move to the next line
  std::string bytes = "\r" + cut;
  if (cut.size() < status_.size()) bytes += std::string(status_.size() - cut.size(), ' ') + (cut.empty() ? "\r" : "");
  if (cut.empty() && status_.empty()) return;
  write(bytes);
  status_ = cut;
}

void Terminal::write(const std::string& bytes) const {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t written = ::write(STDERR_FILENO, bytes.data() + done, bytes.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;  // nobody listens: no reason to fail a run
    done += static_cast<size_t>(written);
  }
}

}  // namespace hcsmoe
