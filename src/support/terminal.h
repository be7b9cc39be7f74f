#pragma once
// What a person sees on stderr: lines, and below them one status line that is redrawn in place where stderr is a terminal. Needs nothing
// but a carriage return and blanks, so it works on any terminal.

#include <filesystem>
#include <mutex>
#include <string>

namespace hcsmoe {

/// Safe to use from several threads.
class Terminal {
 public:
  Terminal();
  ~Terminal();
  Terminal(const Terminal&) = delete;

  /// Whether a status line can be shown. Under mpirun our stderr is a pipe, but a terminal is at its other end if mpirun's stderr is one.
  bool interactive() const { return descriptor_ >= 0; }
  int width() const;  // columns, asked anew each time; 80 where it is not known

  void print(const std::string& text);   // a line or several, above the status line
  void show(const std::string& status);  // replaces the status line; longer than the width is cut; "" removes it

 private:
  void write(const std::string& bytes) const;
  std::mutex mutex_;
  int descriptor_ = -1;  // of the terminal, to ask for its width
  std::string status_;   // as shown
};

}  // namespace hcsmoe
