#pragma once
// The second half of DeviceLink: devices that are memory of the host. Copies are made by a thread of its own, late if wanted; collectives
// are messages of MPI, which move on when somebody asks how they are. Nothing happens at the time when it is queued, so what reads or
// reuses memory too early is seen. Errors are made to order.

#include <mpi.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "hcsmoe/device_link.h"
#include "hcsmoe/error.h"

namespace hcsmoe {

class HostLink : public DeviceLink {
 public:
  std::chrono::milliseconds copy_takes{0};
  int failing_call = -1;    // the collective of this number is refused when it is called
  int async_error_at = -1;  // that of this number fails later
  int silent_from = -1;     // this rank takes no part from that number on: it is as good as dead

  /// device: what tensors in its memory say that they are on.
  explicit HostLink(c10::Device device = c10::kCPU) : device_(device) {
    MPI_Comm_dup(MPI_COMM_WORLD, &comm_);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    worker_ = std::thread([this] {
      while (!end_) {
        progress(Stream::copy);
        progress(Stream::compute);
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    });
  }
  ~HostLink() override {
    end_ = true;
    worker_.join();
    if (!aborted_) MPI_Comm_free(&comm_);
  }

  c10::Device device() const override { return device_; }
  uint64_t memory_bytes() const override { return uint64_t{1} << 40; }
  bool holds(const void* memory) const override {
    const std::lock_guard lock(memory_->mutex);
    const auto after = memory_->live.upper_bound(static_cast<const std::byte*>(memory));
    if (after == memory_->live.begin()) return false;
    const auto& [begin, bytes] = *std::prev(after);
    return memory < begin + bytes;
  }
  std::shared_ptr<std::byte> device_memory(size_t bytes) override {
    auto* begin = new std::byte[bytes + 1];
    const std::lock_guard lock(memory_->mutex);
    memory_->live[begin] = bytes;
    memory_->most = std::max(memory_->most, memory_->bytes += bytes);
    return {begin, [counted = memory_, bytes](std::byte* p) {
              {
                const std::lock_guard count(counted->mutex);
                counted->live.erase(p);
                counted->bytes -= bytes;
              }
              delete[] p;
            }};
  }
  std::shared_ptr<std::byte> pinned_memory(size_t bytes) override {
    pinned_ += bytes;
    return {new std::byte[bytes], [](std::byte* p) { delete[] p; }};
  }
  size_t most_device_bytes() const { return memory_->most; }
  size_t pinned_bytes() const { return pinned_; }
  bool aborted() const { return aborted_; }

  void copy(std::byte* to_device, const std::byte* from_host, size_t bytes) override {
    push(Stream::copy, late(copy_takes, [=] { std::memcpy(to_device, from_host, bytes); }));
  }
  /// What a kernel does, some time after it was queued.
  void compute(std::chrono::milliseconds takes, std::function<void()> kernel) { push(Stream::compute, late(takes, std::move(kernel))); }

  void broadcast(std::byte* memory, size_t bytes, int root) override {
    if (size_ == 1) return;
    collective([this, memory, bytes, root](std::vector<MPI_Request>& requests) {
      const int count = static_cast<int>(bytes);
      for (int to = 0; to < size_ && rank_ == root; ++to) {
        if (to != root) MPI_Isend(memory, count, MPI_BYTE, to, 1, comm_, &requests.emplace_back());
      }
      if (rank_ != root) MPI_Irecv(memory, count, MPI_BYTE, root, 1, comm_, &requests.emplace_back());
    });
  }
  void all_reduce_sum(int64_t* memory, size_t values) override {
    if (size_ == 1) return;
    collective([this, memory, values](std::vector<MPI_Request>& requests) {
      MPI_Iallreduce(MPI_IN_PLACE, memory, static_cast<int>(values), MPI_INT64_T, MPI_SUM, comm_, &requests.emplace_back());
    });
  }
  void reduce_sum(int64_t* memory, size_t values, int root) override {
    if (size_ == 1) return;
    collective([this, memory, values, root](std::vector<MPI_Request>& requests) {
      MPI_Ireduce(rank_ == root ? MPI_IN_PLACE : memory, memory, static_cast<int>(values), MPI_INT64_T, MPI_SUM, root, comm_,
                  &requests.emplace_back());
    });
  }
  void group_begin() override { grouped_ = true; }
  void group_end() override {
    grouped_ = false;
    for (auto& step : std::exchange(group_, {})) push(Stream::exchange, std::move(step));
  }

  std::unique_ptr<Event> record(Stream stream) override {
    auto event = std::make_unique<HostEvent>();
    if (stream == Stream::exchange) event->ask = [this] { progress(Stream::exchange); };
    push(stream, [reached = event->reached] { return *reached = true; });
    return event;
  }
  void wait(Stream later, const Event& earlier) override {
    push(later, [reached = static_cast<const HostEvent&>(earlier).reached] { return reached->load(); });
  }
  void check() override {
    progress(Stream::exchange);
    if (failed_) throw Error("a collective failed on the way");
  }
  void abort() noexcept override {
    aborted_ = true;
    const std::lock_guard lock(mutex_);
    for (MPI_Request& request : running_) MPI_Request_free(&request);
    running_.clear();
    // Events of what was queued come, results do not.
    for (auto& step : waiting_[Stream::exchange]) {
      for (int tries = 0; tries < 3 && !step(); ++tries) {
      }
    }
    waiting_[Stream::exchange].clear();
  }

 private:
  using Step = std::function<bool()>;  // true: done
  struct HostEvent : Event {
    std::shared_ptr<std::atomic<bool>> reached = std::make_shared<std::atomic<bool>>(false);
    std::function<void()> ask;
    bool done() override {
      if (!*reached && ask) ask();
      return *reached;
    }
  };
  struct Memory {
    std::mutex mutex;
    std::map<const std::byte*, size_t> live;
    size_t bytes = 0, most = 0;
  };

  static Step late(std::chrono::milliseconds takes, std::function<void()> work) {
    auto until = std::make_shared<std::chrono::steady_clock::time_point>();
    return [takes, work = std::move(work), until] {
      const auto now = std::chrono::steady_clock::now();
      if (*until == std::chrono::steady_clock::time_point()) *until = now + takes;
      if (now < *until) return false;
      work();
      return true;
    };
  }
  void collective(std::function<void(std::vector<MPI_Request>&)> start) {
    const int number = calls_++;
    if (number == failing_call) throw Error("a collective was refused");
    if (silent_from >= 0 && number >= silent_from) return;
    Step step = [this, number, start = std::move(start), started = false]() mutable {
      if (aborted_) return true;
      if (number == async_error_at) failed_ = true;
      if (failed_) return false;
      if (!std::exchange(started, true)) start(running_);
      int all_done = 0;
      MPI_Testall(static_cast<int>(running_.size()), running_.data(), &all_done, MPI_STATUSES_IGNORE);
      if (all_done) running_.clear();
      return all_done != 0;
    };
    grouped_ ? group_.push_back(std::move(step)) : push(Stream::exchange, std::move(step));
  }
  void push(Stream stream, Step step) {
    const std::lock_guard lock(mutex_);
    waiting_[stream].push_back(std::move(step));
  }
  void progress(Stream stream) {
    const std::lock_guard lock(mutex_);
    auto& steps = waiting_[stream];
    while (!steps.empty() && steps.front()()) steps.pop_front();
  }

  const c10::Device device_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1, calls_ = 0;
  std::shared_ptr<Memory> memory_ = std::make_shared<Memory>();
  std::atomic<size_t> pinned_{0};
  std::recursive_mutex mutex_;  // of what follows
  std::map<Stream, std::deque<Step>> waiting_;
  std::vector<MPI_Request> running_;  // of the collective in front
  std::vector<Step> group_;
  bool grouped_ = false;
  std::atomic<bool> failed_{false}, aborted_{false}, end_{false};
  std::thread worker_;  // last: it uses the others
};

}  // namespace hcsmoe
