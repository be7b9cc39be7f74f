#include "hcsmoe/trace.h"

#include <gtest/gtest.h>

#include <future>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

namespace hcsmoe {
namespace {

using nlohmann::json;

/// Of each event's name, the name of its row; and that no row has two names, no name two rows.
std::map<std::string, std::string> rows_of_events(const Trace& trace) {
  const json events = json::parse("[" + trace.events() + "]");
  std::map<int, std::string> names;
  std::map<std::string, int> numbers;
  std::map<std::string, std::string> found;
  for (const json& event : events) {
    if (event["name"] != "thread_name") continue;
    EXPECT_TRUE(names.emplace(event["tid"], event["args"]["name"]).second);
    EXPECT_TRUE(numbers.emplace(event["args"]["name"], event["tid"]).second);
  }
  for (const json& event : events) {
    if (event["ph"] == "X") found[event["name"]] = names.at(event["tid"]);
  }
  return found;
}

TEST(Trace, ThreadsThatLiveAtOnceHaveRowsOfTheirOwn) {
  Trace trace(0);
  std::promise<void> both_named;
  const std::shared_future<void> wait = both_named.get_future().share();
  std::promise<void> named[2];
  const auto work = [&](int i, const char* span) {
    const TraceRow row(&trace, "reader");
    named[i].set_value();
    wait.wait();
    const Span reading(&trace, Activity::reading, span);
  };
  std::thread first(work, 0, "first");
  named[0].get_future().wait();
  std::thread second(work, 1, "second");
  named[1].get_future().wait();
  both_named.set_value();
  first.join();
  second.join();
  { const Span here(&trace, Activity::computing, "here"); }
  std::thread([&] {
    const TraceRow row(&trace, "reader");
    const Span reading(&trace, Activity::reading, "third");
  }).join();
  const auto rows = rows_of_events(trace);
  EXPECT_EQ(rows.at("here"), "main");
  EXPECT_EQ(rows.at("first"), "reader");
  EXPECT_EQ(rows.at("second"), "reader 2");
  EXPECT_EQ(rows.at("third"), "reader");
}

TEST(Trace, AThreadWithoutANameHasARow) {
  Trace trace(3);
  std::thread([&] { const Span span(&trace, Activity::writing, "unnamed", 7); }).join();
  EXPECT_EQ(rows_of_events(trace).at("unnamed"), "thread 1");
  const json events = json::parse("[" + trace.events() + "]");
  EXPECT_EQ(events.back()["args"]["layer"], 7);
  EXPECT_EQ(events.back()["pid"], 3);
  EXPECT_EQ(events.back()["cat"], "writing");
}

TEST(Trace, NobodyAsked) {
  const TraceRow row(nullptr, "reader");
  const Span span(nullptr, Activity::reading, "nothing");
}

}  // namespace
}  // namespace hcsmoe
