#pragma once
// The ranks of a run: MPI processes, each with a share of a node's cores or one GPU. Described once, by one object that is passed, never
// global. A group of one rank returns early from every collective.
//
// Collectives carry int64 (order-free sums) and bytes; of a tensor, where it is: by MPI in memory of the host, by NCCL on a GPU. What each
// rank holds before and after, on 3 ranks:
//   all_reduce_sum   [1 2] [3 4] [5 6]   ->  [9 12] [9 12] [9 12]
//   reduce_sum(0)    [1 2] [3 4] [5 6]   ->  [9 12]  undefined  undefined
//   broadcast(1)     "a"   "b"   ""      ->  "b"    "b"    "b"
//   gather(0)        "a"   "b"   ""      ->  {"a","b",""}  {}  {}
// In each of them a rank first waits until all have come, sleeping rather than spinning, and no longer than wait_limit(): a rank that
// hangs, or whose host has vanished unnoticed, ends the job with an Error instead of holding it for ever.

#include <ATen/core/Tensor.h>
#include <mpi.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hcsmoe/error.h"
#include "hcsmoe/trace.h"

namespace hcsmoe {

class DeviceLink;

/// How long a wait for other ranks, or for what they send, lasts at most, where the configuration says nothing (device.wait_limit).
inline constexpr std::chrono::milliseconds longest_wait = std::chrono::minutes(30);

class Ranks {
 public:
  /// Of an initialised MPI communicator, which is duplicated. Collective.
  explicit Ranks(MPI_Comm parent);
  ~Ranks();
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }  // among the ranks of this node
  int local_size() const { return local_size_; }
  const std::vector<int64_t>& local_processes() const { return local_processes_; }  // ids of the ranks of this node, this one's too
  bool is_root() const { return rank_ == 0; }
  /// Layers and output files are dealt round-robin.
  int owner_of(int64_t index) const { return static_cast<int>(index % size_); }

  std::chrono::milliseconds wait_limit() const { return wait_limit_; }
  void set_wait_limit(std::chrono::milliseconds limit) { wait_limit_ = limit; }

  /// Where this rank's waits and exchanges are noted; nullptr: nobody asked. It must outlive what is called afterwards.
  Trace* trace() const { return trace_; }
  void use_trace(Trace* trace) { trace_ = trace; }

  void all_reduce_sum(std::span<int64_t> values) const;
  void reduce_sum(std::span<int64_t> values, int root) const;
  int64_t all_reduce_max(int64_t value) const;
  void broadcast(std::string& bytes, int root) const;
  std::vector<std::string> gather(const std::string& bytes, int root) const;
  void barrier() const;

  /// The GPU of this rank; nullptr on CPUs, and until one is given. All ranks have one, or none has.
  DeviceLink* device() const { return device_.get(); }
  void use_device(std::shared_ptr<DeviceLink> device) { device_ = std::move(device); }
  // In place, of contiguous tensors that have one shape on all ranks. Sums are of int64; several go out as one call.
  void all_reduce_sums(std::span<const at::Tensor> tensors) const;
  void reduce_sum(const at::Tensor&, int root) const;
  void broadcast(const at::Tensor&, int root) const;
  /// Agreement before ranks exchange what must look alike. UserError on all ranks: what differs, naming the first differing line of rank 0
  /// and of the lowest rank that has another. Collective.
  void require_same(const std::string& what, const std::string& lines) const;

  /// Runs `work` on rank 0 only. If it throws, every rank throws a CollectiveError with its message and exit code, so that all ranks
  /// leave together and rank 0 alone prints. Collective.
  void on_root(const std::function<void()>& work) const;
  /// Runs `work` on every rank; if any throws, all throw the error of the lowest rank that did (its text says which rank, if not 0).
  void on_all(const std::function<void()>& work) const;

 private:
  [[noreturn]] void throw_together(int from, std::string message, ExitCode code) const;  // of rank `from`
  void arrive() const;                                                                   // returns when all ranks have
  MPI_Comm comm_ = MPI_COMM_NULL;
  void broadcast_bytes(std::span<std::byte> bytes, int root) const;
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1;
  std::vector<int64_t> local_processes_;
  std::chrono::milliseconds wait_limit_ = longest_wait;
  Trace* trace_ = nullptr;
  std::shared_ptr<DeviceLink> device_;
};

}  // namespace hcsmoe
