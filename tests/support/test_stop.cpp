// Being asked to stop, in processes of their own: what they do, and with which exit code they end.

#include "hcsmoe/stop.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <thread>

namespace hcsmoe {
namespace {

using namespace std::chrono_literals;

/// A process that runs `body` and ends with what it returns.
struct Process {
  explicit Process(const std::function<int()>& body) : id(::fork()) {
    if (id != 0) return;
    block_stop_signals();
    ::_exit(body());
  }
  /// Its exit code, or minus the signal that ended it.
  int code() const {
    int status = 0;
    EXPECT_EQ(::waitpid(id, &status, 0), id);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  const pid_t id;
};

void wait_for(const StopRequest& stop) {
  while (!stop.requested()) std::this_thread::sleep_for(1ms);
}

constexpr StopLimits soon{300ms, 600ms}, late{60s, 90s};

class Signal : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Stop, Signal, testing::Values(SIGTERM, SIGUSR1));

TEST_P(Signal, SetsAFlag) {
  const Process process([] {
    StopRequest stop(0, {}, 0, late);
    if (stop.requested()) return 1;
    ::kill(::getpid(), GetParam());
    wait_for(stop);
    stop.agreed();
    return 42;
  });
  EXPECT_EQ(process.code(), 42);
}

TEST_P(Signal, BeforeAnybodyListensIsKept) {
  const Process process([] {
    ::kill(::getpid(), GetParam());
    StopRequest stop(0, {}, 0, late);
    wait_for(stop);
    return 42;
  });
  EXPECT_EQ(process.code(), 42);
}

TEST_P(Signal, EndsAProcessThatComesToNoBoundary) {
  const Process process([] {
    StopRequest stop(0, {}, 0, soon);
    ::kill(::getpid(), GetParam());
    std::this_thread::sleep_for(60s);
    return 42;
  });
  EXPECT_EQ(process.code(), 75);
}

TEST_P(Signal, EndsAProcessWhoseSavingHangs) {
  const Process process([] {
    StopRequest stop(0, {}, 0, soon);
    ::kill(::getpid(), GetParam());
    wait_for(stop);
    stop.agreed();
    std::this_thread::sleep_for(60s);
    return 42;
  });
  EXPECT_EQ(process.code(), 75);
}

TEST_P(Signal, EndsAtOnceAProcessThatIsFailing) {
  const Process process([] {
    StopRequest stop(0, {}, 0, late);
    stop.failing(2);
    ::kill(::getpid(), GetParam());
    std::this_thread::sleep_for(60s);
    return 42;
  });
  EXPECT_EQ(process.code(), 2);
}

TEST_P(Signal, AfterThatOfAPeerEndsTheProcessAtOnce) {
  const Process peer([] {
    std::this_thread::sleep_for(60s);
    return 0;
  });
  const Process process([&] {
    StopRequest stop(0, {::getpid(), peer.id}, 0, late);
    ::kill(peer.id, SIGKILL);
    ::kill(::getpid(), GetParam());
    std::this_thread::sleep_for(60s);
    return 42;
  });
  EXPECT_EQ(peer.code(), -SIGKILL);  // collected, as mpirun does: the id is free
  EXPECT_EQ(process.code(), 1);
}

TEST(Stop, PeersThatAreNotSeenAreNotMissed) {
  const Process process([] {
    StopRequest stop(0, {999'999'999}, 0, soon);
    ::kill(::getpid(), SIGTERM);
    std::this_thread::sleep_for(60s);
    return 42;
  });
  EXPECT_EQ(process.code(), 75) << "the limit ended it, not a peer";
}

TEST(Stop, ARankWhoseLauncherHasEndedEnds) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const Process launcher([&] {
    const Process rank([&] {
      StopRequest stop(0, {}, ::getppid(), late);
      ::close(ends[0]);
      if (::write(ends[1], "r", 1) != 1) return 1;
      std::this_thread::sleep_for(60s);  // the pipe closes when this process ends
      return 42;
    });
    std::this_thread::sleep_for(60s);
    return 0;
  });
  ::close(ends[1]);
  char ready = 0;
  ASSERT_EQ(::read(ends[0], &ready, 1), 1);
  ::kill(launcher.id, SIGKILL);
  launcher.code();
  EXPECT_EQ(::read(ends[0], &ready, 1), 0) << "the rank ended long before its minute was over";
  ::close(ends[0]);
}

TEST(Stop, WithoutASignalNothingHappens) {
  const Process process([] {
    StopRequest stop(0, {::getpid()}, ::getppid(), soon);
    std::this_thread::sleep_for(500ms);
    return stop.requested() ? 1 : 0;
  });
  EXPECT_EQ(process.code(), 0);
}

}  // namespace
}  // namespace hcsmoe
