#pragma once
// The GPU of a rank and its link to the GPUs of the other ranks: memory, three streams, copies, and collectives among devices. All that is
// peculiar to CUDA and NCCL is behind this interface (src/ranks/cuda_link.cpp), and all that uses it runs in the tests over a second half,
// whose devices are memory of the host (tests/support/host_link.h).
//
// Copies and collectives are queued and return at once. Collectives are queued by one thread of a rank, on all ranks in the same order. Who
// needs a result waits for an event with wait_for, which has a limit and looks for errors of the link, so a rank that is gone ends the
// others instead of letting them wait for ever.

#include <c10/core/Device.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace hcsmoe {

class Ranks;

class DeviceLink {
 public:
  /// What is queued on one stream runs in order; streams run beside each other. Kernels of libtorch run on `compute`.
  enum class Stream { compute, copy, exchange };
  /// A place in a stream. done may be asked by any thread; throws Error where the device failed.
  class Event {
   public:
    virtual ~Event() = default;
    virtual bool done() = 0;
  };

  virtual ~DeviceLink() = default;
  virtual c10::Device device() const = 0;  // of the tensors in its memory
  virtual uint64_t memory_bytes() const = 0;
  virtual bool holds(const void* memory) const = 0;  // whether it is memory of the device
  /// Freed with the last owner, which must have waited for what is queued on it. UserError: there is not as much.
  virtual std::shared_ptr<std::byte> device_memory(size_t bytes) = 0;
  /// Of the host, from which copies run beside the processor. Any thread.
  virtual std::shared_ptr<std::byte> pinned_memory(size_t bytes) = 0;

  /// On `copy`; the host's bytes must stay until it is done.
  virtual void copy(std::byte* to_device, const std::byte* from_host, size_t bytes) = 0;
  // On `exchange`. What they leave on each rank is as in ranks.h.
  virtual void broadcast(std::byte* memory, size_t bytes, int root) = 0;
  virtual void all_reduce_sum(int64_t* memory, size_t values) = 0;
  virtual void reduce_sum(int64_t* memory, size_t values, int root) = 0;
  /// Collectives between the two go out as one.
  virtual void group_begin() = 0;
  virtual void group_end() = 0;

  virtual std::unique_ptr<Event> record(Stream) = 0;
  virtual void wait(Stream later, const Event& earlier) = 0;  // on the device; returns at once
  /// Throws Error if a queued collective has failed on any rank that this one has heard of.
  virtual void check() = 0;
  /// Ends all collectives that are queued, without results; none may follow. Of a link that failed, before its rank leaves.
  virtual void abort() noexcept = 0;
};

/// Returns when the event is done. If the link fails, or after `limit`, the link is aborted and an Error says what was waited for.
void wait_for(DeviceLink&, DeviceLink::Event&, const std::string& what, std::chrono::milliseconds limit);
/// How long any wait for devices and files may take without progress.

/// The GPU of this rank (its number among the ranks of the node) and the NCCL communicator of all ranks' GPUs. Collective; every rank
/// throws the same UserError: the program was built without CUDA, there is no GPU, or fewer than ranks on the node.
std::shared_ptr<DeviceLink> open_device(const Ranks&);

}  // namespace hcsmoe
