// The half of DeviceLink that needs CUDA and NCCL. Raw pointers, no libtorch: its kernels run on the default stream, which is `compute`
// here. The communicator does not block: every call that may take long is asked until it is done, up to a limit.

#include <cuda_runtime.h>
#include <nccl.h>

#include <array>
#include <cstring>
#include <mutex>
#include <thread>

#include "hcsmoe/device_link.h"
#include "hcsmoe/ranks.h"

namespace hcsmoe {
namespace {

void check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  throw Error(std::string(call) + " failed: " + cudaGetErrorString(code));
}

std::string text_of(ncclResult_t code, ncclComm_t communicator) {
  const char* last = ncclGetLastError(communicator);
  return std::string(ncclGetErrorString(code)) + (last && *last ? std::string(" (") + last + ")" : "");
}

class CudaEvent : public DeviceLink::Event {
 public:
  explicit CudaEvent(cudaStream_t stream) {
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
    const cudaError_t code = cudaEventRecord(event_, stream);
    if (code != cudaSuccess) cudaEventDestroy(event_);
    check(code, "cudaEventRecord");
  }
  ~CudaEvent() override { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  bool done() override {
    const cudaError_t code = cudaEventQuery(event_);
    if (code == cudaErrorNotReady) return false;
    check(code, "work on the GPU");
    return true;
  }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class CudaLink : public DeviceLink {
 public:
  CudaLink(int device, const Ranks& ranks) : device_(device), size_(ranks.size()) {
    check(cudaSetDevice(device_), "cudaSetDevice");
    size_t free = 0;
    check(cudaMemGetInfo(&free, &memory_), "cudaMemGetInfo");
    for (cudaStream_t* stream : {&copy_, &exchange_}) check(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "cudaStreamCreate");
  }

  /// The communicator, as rank `rank` of those that have the same id. All of them at once.
  void join(const ncclUniqueId& id, int rank) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const ncclResult_t code = ncclCommInitRankConfig(&communicator_, size_, id, rank, &config);
    if (code != ncclSuccess && code != ncclInProgress) {
      throw Error("NCCL cannot join the GPUs of the ranks: " + text_of(code, nullptr));
    }
    settle("the communicator of the ranks' GPUs");
  }

  ~CudaLink() override {
    if (communicator_) {
      // A communicator that does not end by itself is aborted: others may be gone.
      bool ended = !aborted_;
      if (ended) {
        try {
          const ncclResult_t code = ncclCommFinalize(communicator_);
          ended = code == ncclSuccess || code == ncclInProgress;
          if (ended) settle("the end of the communicator");
        } catch (const Error&) {
          ended = false;
        }
      }
      if (ended) {
        ncclCommDestroy(communicator_);
      } else {
        abort();
      }
    }
    for (cudaStream_t stream : {copy_, exchange_}) {
      if (stream) cudaStreamDestroy(stream);
    }
  }

  c10::Device device() const override { return {c10::kCUDA, static_cast<c10::DeviceIndex>(device_)}; }
  uint64_t memory_bytes() const override { return memory_; }
  bool holds(const void* memory) const override {
    cudaPointerAttributes attributes{};
    if (cudaPointerGetAttributes(&attributes, memory) != cudaSuccess) {
      cudaGetLastError();  // forget it
      return false;
    }
    return attributes.type == cudaMemoryTypeDevice;
  }

  std::shared_ptr<std::byte> device_memory(size_t bytes) override {
    void* memory = nullptr;
    check(cudaSetDevice(device_), "cudaSetDevice");
    const cudaError_t code = cudaMalloc(&memory, bytes);
    if (code == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw UserError("the GPU has no " + std::to_string(bytes >> 20) + " MiB left for the weights of a layer",
                      "see what a run holds: hcsmoe_dist inspect CONFIG --set device.memory=SIZE; fewer calibration tokens, or more ranks");
    }
    check(code, "cudaMalloc");
    return {static_cast<std::byte*>(memory), [](std::byte* p) { cudaFree(p); }};
  }

  std::shared_ptr<std::byte> pinned_memory(size_t bytes) override {
    void* memory = nullptr;
    check(cudaSetDevice(device_), "cudaSetDevice");  // a thread starts with GPU 0
    const cudaError_t code = cudaHostAlloc(&memory, bytes, cudaHostAllocPortable);
    if (code == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw UserError("the host has no " + std::to_string(bytes >> 20) + " MiB of memory left that can be pinned",
                      "set a smaller device.read_ahead, or raise the limit of locked memory (ulimit -l)");
    }
    check(code, "cudaHostAlloc");
    return {static_cast<std::byte*>(memory), [](std::byte* p) { cudaFreeHost(p); }};
  }

  void copy(std::byte* to_device, const std::byte* from_host, size_t bytes) override {
    check(cudaMemcpyAsync(to_device, from_host, bytes, cudaMemcpyHostToDevice, copy_), "cudaMemcpyAsync");
  }
  void broadcast(std::byte* memory, size_t bytes, int root) override {
    if (size_ > 1) queued(ncclBroadcast(memory, memory, bytes, ncclInt8, root, communicator_, exchange_), "ncclBroadcast");
  }
  void all_reduce_sum(int64_t* memory, size_t values) override {
    if (size_ > 1) queued(ncclAllReduce(memory, memory, values, ncclInt64, ncclSum, communicator_, exchange_), "ncclAllReduce");
  }
  void reduce_sum(int64_t* memory, size_t values, int root) override {
    if (size_ > 1) queued(ncclReduce(memory, memory, values, ncclInt64, ncclSum, root, communicator_, exchange_), "ncclReduce");
  }
  void group_begin() override {
    if (size_ == 1) return;
    grouped_ = true;
    queued(ncclGroupStart(), "ncclGroupStart");
  }
  void group_end() override {
    if (size_ == 1) return;
    grouped_ = false;
    queued(ncclGroupEnd(), "ncclGroupEnd");
  }

  std::unique_ptr<Event> record(Stream stream) override { return std::make_unique<CudaEvent>(of(stream)); }
  void wait(Stream later, const Event& earlier) override {
    check_call(cudaStreamWaitEvent(of(later), static_cast<const CudaEvent&>(earlier).get(), 0), "cudaStreamWaitEvent");
  }

  void check() override {
    if (communicator_ && !aborted_) state();
  }
  void abort() noexcept override {
    if (communicator_ && !aborted_) ncclCommAbort(communicator_);
    aborted_ = true;
  }

 private:
  static void check(cudaError_t code, const char* call) { hcsmoe::check(code, call); }
  static void check_call(cudaError_t code, const char* call) { hcsmoe::check(code, call); }

  cudaStream_t of(Stream stream) const { return stream == Stream::copy ? copy_ : stream == Stream::exchange ? exchange_ : nullptr; }
  /// ncclSuccess or ncclInProgress; any other is thrown.
  ncclResult_t state() {
    ncclResult_t code = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(communicator_, &code);
    if (asked != ncclSuccess) code = asked;
    if (code != ncclSuccess && code != ncclInProgress)
      throw Error("the link between the ranks' GPUs failed: " + text_of(code, communicator_));
    return code;
  }
  void settle(const char* what) {
    const auto start = std::chrono::steady_clock::now();
    while (state() == ncclInProgress) {
      if (std::chrono::steady_clock::now() - start > longest_wait)
        throw Error(std::string(what) + " takes too long: another rank has ended, or hangs");
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
  /// A call on a communicator that does not block may still be in progress; the next may come only when it is queued.
  void queued(ncclResult_t code, const char* call) {
    if (code != ncclSuccess && code != ncclInProgress) throw Error(std::string(call) + " failed: " + text_of(code, communicator_));
    if (!grouped_) settle(call);
  }

  const int device_, size_;
  size_t memory_ = 0;
  cudaStream_t copy_ = nullptr, exchange_ = nullptr;
  ncclComm_t communicator_ = nullptr;
  bool grouped_ = false, aborted_ = false;
};

}  // namespace

std::shared_ptr<DeviceLink> open_device(const Ranks& ranks) {
  std::shared_ptr<CudaLink> link;
  ranks.on_all([&] {
    int devices = 0;
    const cudaError_t code = cudaGetDeviceCount(&devices);
    if (code != cudaSuccess || devices == 0) {
      throw UserError(
          "device.type is cuda, but this program sees no GPU" + (code == cudaSuccess ? "" : std::string(": ") + cudaGetErrorString(code)),
          "run it where `nvidia-smi` lists GPUs (in a container, with the GPUs passed on), or set device.type: cpu");
    }
    if (ranks.local_size() > devices) {
      throw UserError("device.type is cuda, and this node has " + std::to_string(ranks.local_size()) + " ranks, but " +
                          std::to_string(devices) + (devices == 1 ? " GPU" : " GPUs"),
                      "start one rank a GPU: mpirun --npernode " + std::to_string(devices));
    }
    link = std::make_shared<CudaLink>(ranks.local_rank(), ranks);
  });
  if (ranks.size() == 1) return link;
  std::string id;
  ranks.on_root([&] {
    ncclUniqueId made;
    const ncclResult_t code = ncclGetUniqueId(&made);
    if (code != ncclSuccess) throw Error("ncclGetUniqueId failed: " + text_of(code, nullptr));
    id.assign(reinterpret_cast<const char*>(&made), sizeof made);
  });
  ranks.broadcast(id, 0);
  ranks.on_all([&] {
    ncclUniqueId of_root;
    std::memcpy(&of_root, id.data(), sizeof of_root);
    link->join(of_root, ranks.rank());
  });
  return link;
}

}  // namespace hcsmoe
