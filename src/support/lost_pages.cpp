#include "support/lost_pages.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>

#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

// Read by a signal handler: plain memory that is never freed. `begin` is set last and cleared first.
struct Mapping {
  std::atomic<const std::byte*> begin{nullptr};
  size_t size = 0;
  std::array<char, 1024> path{};
};
std::array<Mapping, 4096> mappings;
std::mutex changing;
int rank_shown = -1;
struct sigaction handler_before {};

/// Text of a fixed size: nothing is allocated in a signal handler.
class Message {
 public:
  void add(const char* text) {
    const size_t length = std::min(std::strlen(text), text_.size() - used_);
    std::memcpy(text_.data() + used_, text, length);
    used_ += length;
  }
  void add(uint64_t number) {
    std::array<char, 24> digits{};
    size_t at = digits.size() - 1;
    do {
      digits[--at] = static_cast<char>('0' + number % 10);
      number /= 10;
    } while (number > 0);
    add(digits.data() + at);
  }
  void print() const {
    const ssize_t ignored = ::write(STDERR_FILENO, text_.data(), used_);
    static_cast<void>(ignored);
  }

 private:
  std::array<char, 2048> text_{};
  size_t used_ = 0;
};

const Mapping* mapping_of(const std::byte* address) {
  for (const Mapping& mapping : mappings) {
    const std::byte* const begin = mapping.begin.load(std::memory_order_acquire);
    if (begin && address >= begin && address < begin + mapping.size) return &mapping;
  }
  return nullptr;
}

void on_bus_error(int signal, siginfo_t* info, void*) {
  const bool of_memory = info->si_code > 0;  // else somebody sent it
  const auto* const address = static_cast<const std::byte*>(info->si_addr);
  const Mapping* const mapping = of_memory ? mapping_of(address) : nullptr;
  if (!mapping) {
    ::sigaction(signal, &handler_before, nullptr);
    if (!of_memory) ::raise(signal);
    return;  // the instruction runs again and meets the handler before
  }
  struct stat status {};
  const bool found = ::stat(mapping->path.data(), &status) == 0;
  Message message;
  message.add("\nhcsmoe_dist: ");
  if (rank_shown > 0) {
    message.add("rank ");
    message.add(static_cast<uint64_t>(rank_shown));
    message.add(": ");
  }
  message.add("error: ");
  message.add(mapping->path.data());
  message.add(": byte ");
  message.add(static_cast<uint64_t>(address - mapping->begin.load(std::memory_order_relaxed)));
  message.add(" cannot be read any more: ");
  if (found && static_cast<uint64_t>(status.st_size) < mapping->size) {
    message.add("the file had ");
    message.add(static_cast<uint64_t>(mapping->size));
    message.add(" bytes and now has ");
    message.add(static_cast<uint64_t>(status.st_size));
    message.add("\n  hint: is another program writing to it?\n");
  } else {
    message.add("its disk or network file system fails\n  hint: copy the file to another disk\n");
  }
  message.print();
  ::_exit(static_cast<int>(ExitCode::user));
}

}  // namespace

void report_lost_pages(int rank, int ranks) {
  rank_shown = ranks > 1 ? rank : 0;
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, &handler_before);
}

void watch_mapping(const std::byte* begin, size_t size, const char* path) noexcept {
  const std::lock_guard lock(changing);
  for (Mapping& mapping : mappings) {
    if (mapping.begin.load(std::memory_order_relaxed)) continue;
    mapping.size = size;
    std::strncpy(mapping.path.data(), path, mapping.path.size() - 1);
    mapping.begin.store(begin, std::memory_order_release);
    return;
  }
}

void forget_mapping(const std::byte* begin) noexcept {
  const std::lock_guard lock(changing);
  for (Mapping& mapping : mappings) {
    if (mapping.begin.load(std::memory_order_relaxed) == begin) return mapping.begin.store(nullptr, std::memory_order_release);
  }
}

}  // namespace hcsmoe
