// The log and the progress bar as a person sees them: on a pseudo-terminal and in a file. And figures for people.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <regex>
#include <sstream>
#include <thread>
#include <vector>

#include "hcsmoe/error.h"
#include "hcsmoe/log.h"
#include "support/temporary_folder.h"

using namespace hcsmoe;

namespace {

std::string stderr_of(const std::function<void()>& body) {
  testing::internal::CaptureStderr();
  body();
  return testing::internal::GetCapturedStderr();
}

/// Runs body with stderr on a terminal of that width; returns every byte it was sent.
std::string sent_to_terminal(int columns, const std::function<void()>& body) {
  const int master = posix_openpt(O_RDWR | O_NOCTTY);
  if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0) return "no pseudo-terminal";
  const int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
  termios mode{};
  tcgetattr(slave, &mode);
  mode.c_oflag &= ~static_cast<tcflag_t>(OPOST);
  tcsetattr(slave, TCSANOW, &mode);
  winsize size{};
  size.ws_col = static_cast<unsigned short>(columns);
  ioctl(slave, TIOCSWINSZ, &size);
  setenv("TERM", "xterm", 1);
  std::string sent;
  std::thread reader([&] {  // until the last descriptor of the other side is closed
    char buffer[4096];
    for (ssize_t n; (n = read(master, buffer, sizeof buffer)) > 0;) sent.append(buffer, static_cast<size_t>(n));
  });
  const int before = dup(STDERR_FILENO);
  dup2(slave, STDERR_FILENO);
  close(slave);
  body();
  dup2(before, STDERR_FILENO);
  close(before);
  reader.join();
  close(master);
  return sent;
}

/// The lines on the screen after these bytes: a carriage return goes back, later characters overwrite.
std::vector<std::string> screen(const std::string& sent) {
  std::vector<std::string> lines(1);
  size_t column = 0;
  for (const char c : sent) {
    if (c == '\r') {
      column = 0;
    } else if (c == '\n') {
      lines.emplace_back();
      column = 0;
    } else {
      if (lines.back().size() <= column) lines.back().resize(column + 1, ' ');
      lines.back()[column++] = c;
    }
  }
  for (std::string& line : lines) line.erase(line.find_last_not_of(' ') + 1);
  return lines;
}

void pause_for_redraw() { std::this_thread::sleep_for(std::chrono::milliseconds(120)); }

void expect_matches(const std::string& text, const std::string& pattern) {
  EXPECT_TRUE(std::regex_match(text, std::regex(pattern))) << "text:    " << text << "\npattern: " << pattern;
}

}  // namespace

TEST(FormatTest, Bytes) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(999.6), "1.0 kB");
  EXPECT_EQ(format_bytes(1234), "1.2 kB");
  EXPECT_EQ(format_bytes(999'960), "1.0 MB");
  EXPECT_EQ(format_bytes(28.63e9), "28.6 GB");
  EXPECT_EQ(format_bytes(1.3e12), "1.3 TB");
  EXPECT_EQ(format_bytes(5e18), "5000.0 PB");
}

TEST(FormatTest, Counts) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(7), "7");
  EXPECT_EQ(format_count(999.4), "999");
  EXPECT_EQ(format_count(999.5), "1.0k");
  EXPECT_EQ(format_count(12'345), "12.3k");
  EXPECT_EQ(format_count(999'949), "999.9k");
  EXPECT_EQ(format_count(999'950), "1.0M");
  EXPECT_EQ(format_count(2.5e9), "2.5G");
}

TEST(FormatTest, Durations) {
  EXPECT_EQ(format_duration(-1), "0 s");
  EXPECT_EQ(format_duration(0), "0 s");
  EXPECT_EQ(format_duration(0.0123), "12 ms");
  EXPECT_EQ(format_duration(0.9996), "1.0 s");
  EXPECT_EQ(format_duration(3.21), "3.2 s");
  EXPECT_EQ(format_duration(59.94), "59.9 s");
  EXPECT_EQ(format_duration(59.96), "1 min 00 s");
  EXPECT_EQ(format_duration(125), "2 min 05 s");
  EXPECT_EQ(format_duration(3599.4), "59 min 59 s");
  EXPECT_EQ(format_duration(3599.6), "1 h 00 min");
  EXPECT_EQ(format_duration(3720), "1 h 02 min");
  EXPECT_EQ(format_duration(7199), "2 h 00 min");
  EXPECT_EQ(format_duration(100 * 3600), "100 h 00 min");
}

TEST(LogTest, RankZeroSpeaks) {
  const std::string spoken = stderr_of([] {
    Log log(0, true);
    log.info("model {} read");
    log.warn("slow disk");
    log.error("disk full");
  });
  expect_matches(spoken, R"(\[ +\d+\.\d s\] model \{\} read\n\[ +\d+\.\d s\] warning: slow disk\nhcsmoe_dist: error: disk full\n)");
}

TEST(LogTest, WhatSteersATerminalIsEscaped) {
  const std::string spoken = stderr_of([] { Log(0, true).error("tensor \x1b[2J\r\x7f of\n\tcaf\xc3\xa9\xc2\x9b"); });
  EXPECT_EQ(spoken, "hcsmoe_dist: error: tensor \\x1b[2J\\x0d\\x7f of\n\tcaf\xc3\xa9\\xc2\x9b\n");
}

TEST(LogTest, OtherRanksSpeakOnlyErrors) {
  const std::string spoken = stderr_of([] {
    Log log(3, false);
    log.info("a");
    log.warn("b");
    Progress progress(log, "collect", 2, "layers");
    progress.step(2);
    log.error("disk full");
  });
  EXPECT_EQ(spoken, "hcsmoe_dist: rank 3: error: disk full\n");
}

TEST(LogTest, File) {
  const TemporaryFolder folder;
  for (int run = 0; run < 2; ++run) {  // the second run appends
    stderr_of([&] {
      Log log(2, false);
      log.open_file(folder.path() / "work");
      log.info("layer 3 {done}");
      log.warn("slow");
      log.error("bad");
      Progress(log, "collect", 1, "layers").step();
    });
  }
  std::ifstream file(folder.path() / "work/log/rank_2.txt");
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  ASSERT_EQ(lines.size(), 8u);
  const std::string time = R"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} )";
  for (const size_t first : {size_t{0}, size_t{4}}) {
    expect_matches(lines[first], time + R"(info    layer 3 \{done\})");
    expect_matches(lines[first + 1], time + "warning slow");
    expect_matches(lines[first + 2], time + "error   bad");
    expect_matches(lines[first + 3], time + "info    collect: 1 layers in .*");
  }
}

TEST(LogTest, FileThatCannotBeMade) {
  const TemporaryFolder folder;
  std::ofstream(folder.path() / "work") << "a file, not a folder";
  Log log(0, false);
  EXPECT_THROW(log.open_file(folder.path() / "work"), UserError);
}

TEST(ProgressTest, WithoutTerminalOneClosingLine) {
  const std::string spoken = stderr_of([] {
    Log log(0, true);
    Progress progress(log, "collect", 24, "layers", "tokens");
    for (int layer = 0; layer < 24; ++layer) {
      progress.add_detail(1000);
      progress.step();
    }
  });
  expect_matches(spoken, R"(\[ +\d+\.\d s\] collect: 24 layers in [\d.]+ m?s, [\d.]+[kMG] tokens/s\n)");
}

TEST(ProgressTest, StoppedEarly) {
  const std::string spoken = stderr_of([] {
    Log log(0, true);
    try {
      Progress progress(log, "collect", 24, "layers");
      progress.step(12);
      throw Error("stop");
    } catch (const Error&) {
    }
    Progress(log, "nothing", 0, "files");
  });
  expect_matches(spoken, R"([^\n]* collect: stopped at 12/24 layers after [\d.]+ m?s\n[^\n]* nothing: 0 files in [\d.]+ m?s\n)");
}

TEST(ProgressTest, OnATerminal) {
  const std::string all = sent_to_terminal(100, [] {
    Log log(0, true);
    Progress progress(log, "collect", 24, "layers", "tokens");
    pause_for_redraw();
    progress.add_detail(120);
    progress.step(12);
    pause_for_redraw();
    progress.step(0);
    log.info("a line between");
    progress.step(12);
  });
  EXPECT_EQ(all.find('\x1b'), std::string::npos) << "escape codes";
  const std::vector<std::string> last = screen(all);
  ASSERT_EQ(last.size(), 3u) << all;
  expect_matches(last[0], R"(\[ +\d+\.\d s\] a line between)");
  expect_matches(last[1], R"(\[ +\d+\.\d s\] collect: 24 layers in [\d.]+ m?s, [\d.k]+ tokens/s)");
  EXPECT_EQ(last[2], "");

  const size_t line_end = all.find('\n');
  const std::vector<std::string> before_line = screen(all.substr(0, all.find("a line between") - 13));
  EXPECT_EQ(before_line.back(), "") << "the bar is cleared before a line is printed";
  const std::string shown = screen(all.substr(0, all.find("\r", line_end))).back();  // the bar below the line
  expect_matches(shown, R"(collect  \[={20}> {19}\] 12/24 layers  50%  [\d.k]+ tokens/s  \d:\d\d left)");
  EXPECT_EQ(screen(all.substr(0, all.find("\r", 1))).back(), "collect  [>" + std::string(39, ' ') + "] 0/24 layers  0%");
}

TEST(ProgressTest, NarrowTerminalsGetNoBar) {
  const std::string narrow = sent_to_terminal(30, [] {
    Log log(0, true);
    Progress progress(log, "collect", 24, "layers");
  });
  EXPECT_EQ(screen(narrow.substr(0, narrow.find("\r", 1))).back(), "collect  0/24 layers  0%");
  const std::string narrower = sent_to_terminal(12, [] {
    Log log(0, true);
    Progress progress(log, "collect", 24, "layers");
  });
  EXPECT_EQ(screen(narrower.substr(0, narrower.find("\r", 1))).back(), "collect  0/");
}

TEST(ProgressTest, StepsOfSeveralThreadsAddUp) {
  const std::string spoken = stderr_of([] {
    Log log(0, true);
    Progress progress(log, "write", 40'000, "tensors", "B");
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 4; ++thread) {
      threads.emplace_back([&] {
        for (int i = 0; i < 10'000; ++i) progress.step();
        progress.add_detail(1e6);
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  expect_matches(spoken, R"([^\n]* write: 40000 tensors in [\d.]+ m?s, [\d.]+ [MG]B/s\n)");
}
