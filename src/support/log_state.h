#pragma once
// What Log and Progress share. spdlog stays inside log.cpp.

#include <chrono>
#include <memory>

#include "hcsmoe/log.h"
#include "support/terminal.h"

namespace spdlog {
class logger;
}

namespace hcsmoe {

struct Log::State {
  int rank = 0;
  bool speaks = false;
  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
  Terminal terminal;
  std::shared_ptr<spdlog::logger> file;  // nullptr until open_file
};

}  // namespace hcsmoe
