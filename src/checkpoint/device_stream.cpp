// Weights in memory of the ranks' devices. The owner of a layer reads its pieces into a ring of pinned buffers, which holds as many layers
// ahead as its share of the budget allows. When layer l begins, the flow of every rank queues what brings layer l + 1, piece by piece: the
// owner's copy from the ring, and the broadcast. So all collectives are queued by one thread, in one order. If the next layer has not been
// read yet, the flow waits for it here, before layer l is computed; nothing is lost by that, because reading goes on all the time.

#include <ATen/ops/from_blob.h>

#include <array>
#include <exception>
#include <mutex>

#include "checkpoint/read_ahead.h"
#include "checkpoint/streams.h"
#include "hcsmoe/error.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

using Stream = DeviceLink::Stream;

/// Pinned buffers that the pieces 0, 1, ... go through: piece i uses buffer i mod their number, once the copy of the piece before has
/// ended.
class Ring {
 public:
  Ring(DeviceLink& link, size_t buffers, size_t bytes) : link_(link), bytes_(bytes), memory_(buffers), copied_(buffers) {}
  /// On the reading thread.
  bool has_room(size_t piece) {
    if (piece < memory_.size()) return true;
    const std::lock_guard lock(mutex_);
    return queued_ + memory_.size() > piece && copied_[piece % memory_.size()]->done();
  }
  /// Of a piece that has room. A buffer is made when it is first used: pinning memory takes time.
  std::byte* buffer(size_t piece) {
    std::shared_ptr<std::byte>& memory = memory_[piece % memory_.size()];
    if (!memory) memory = link_.pinned_memory(bytes_);
    return memory.get();
  }
  /// Queues the copy of a piece that has been read; pieces come in order. Returns its end.
  const DeviceLink::Event& copy(size_t piece, std::byte* to, size_t bytes) {
    link_.copy(to, memory_[piece % memory_.size()].get(), bytes);
    auto event = link_.record(Stream::copy);
    const std::lock_guard lock(mutex_);
    queued_ = piece + 1;
    return *(copied_[piece % memory_.size()] = std::move(event));
  }
  /// Waits for all copies.
  void drain(std::chrono::milliseconds limit) {
    for (auto& event : copied_) {
      if (event) wait_for(link_, *event, "a copy to the device", limit);
    }
  }

 private:
  DeviceLink& link_;
  const size_t bytes_;
  std::vector<std::shared_ptr<std::byte>> memory_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<DeviceLink::Event>> copied_;  // of the last piece in each buffer
  size_t queued_ = 0;                                       // pieces whose copies are
};

class DeviceStream : public WeightStream {
 public:
  DeviceStream(StreamPlan plan, const Ranks& ranks, DeviceLink& link, const StreamOptions& options)
      : plan_(std::move(plan)),
        ranks_(ranks),
        link_(link),
        options_(options),
        ring_(link, std::max<size_t>(2, options.read_ahead / static_cast<uint64_t>(ranks.local_size()) / options.piece), options.piece) {
    uint64_t largest = 0;
    for (const auto& path : plan_.checkpoint.files()) files_.push_back(File::open_read(path));
    for (size_t l = 0; l < plan_.layout.size(); ++l) {
      const auto layer = static_cast<int64_t>(l);
      largest = std::max(largest, plan_.layout[l].bytes);
      first_.push_back(mine_.size());
      if (ranks.owner_of(layer) != ranks.rank()) continue;
      for (Piece& piece : layer_pieces(plan_.layout[l], layer, options.piece)) mine_.push_back(std::move(piece));
    }
    ranks.on_all([&] {
      for (size_t slot = 0; slot < std::min(slots_.size(), plan_.layout.size()); ++slot) slots_[slot] = link.device_memory(largest);
    });
    reader_ = std::make_unique<ReadAhead>(
        mine_.size(), [this](size_t piece) { return ring_.has_room(piece); }, [this](size_t piece) { read(piece); }, options.trace);
  }

  /// What is queued uses the memory that goes away. After an error nothing of it is waited for: others may never do their part.
  ~DeviceStream() override {
    reader_.reset();
    try {
      if (std::uncaught_exceptions() > 0) {
        link_.abort();
      } else {
        for (const auto& event : arrived_) {
          if (event) wait_for(link_, *event, "a layer's weights", options_.limit);
        }
      }
      ring_.drain(options_.limit);
    } catch (...) {  // an error of a layer that nobody asked for
    }
  }

  void begin_layer(int64_t layer) override {
    plan_.begin(layer);
    if (layer == plan_.first) bring(layer);
    const std::string what = "layer " + std::to_string(layer) + " from rank " + std::to_string(ranks_.owner_of(layer));
    {
      const Span span(options_.trace, Activity::copying, "wait for copies and broadcasts", layer);
      wait_for(link_, *arrived_[slot_of(layer)], what, options_.limit);
    }
    if (layer + 1 < static_cast<int64_t>(plan_.layout.size())) bring(layer + 1);
  }

  at::Tensor tensor(const std::string& name) const override {
    const PlacedTensor* placed = plan_.find(name);
    if (!placed) return plan_.checkpoint.tensor(name).to(link_.device());
    const std::shared_ptr<std::byte>& slot = slots_[slot_of(plan_.current)];
    return at::for_blob(slot.get() + placed->at, placed->info->shape)
        .deleter([slot](void*) {})
        .options(at::TensorOptions().dtype(placed->info->dtype.torch).device(link_.device()))
        .target_device(link_.device())
        .make_tensor();
  }

 private:
  static size_t slot_of(int64_t layer) { return static_cast<size_t>(layer % 2); }

  void read(size_t i) {
    const Span span(options_.trace, Activity::reading, "weights", mine_[i].layer);
    std::byte* const buffer = ring_.buffer(i);
    for (const FileRange& range : mine_[i].ranges) {
      const std::span bytes(buffer + (range.at - mine_[i].begin), range.end - range.begin);
      files_[static_cast<size_t>(range.file)].read_at(range.begin, bytes);
      plan_.checkpoint.note_read(range.file, range.begin, bytes);
    }
  }

  /// Queues all that brings a layer, into the memory of the one before the current; returns when it is queued.
  void bring(int64_t layer) {
    const Span span(options_.trace, Activity::copying, "queue copies and broadcasts", layer);
    const auto used = link_.record(Stream::compute);  // what still computes with that memory
    link_.wait(Stream::copy, *used);
    link_.wait(Stream::exchange, *used);
    const auto l = static_cast<size_t>(layer);
    const int owner = ranks_.owner_of(layer);
    std::byte* const memory = slots_[slot_of(layer)].get();
    size_t mine = first_[l];
    for (uint64_t begin = 0; begin < plan_.layout[l].bytes; begin += options_.piece) {
      const uint64_t bytes = std::min(options_.piece, plan_.layout[l].bytes - begin);
      if (owner == ranks_.rank()) {
        {
          const Span waiting(options_.trace, Activity::reading, "wait for the reader", layer);
          reader_->wait_for(mine + 1, options_.limit);
        }
        link_.wait(Stream::exchange, ring_.copy(mine, memory + begin, bytes));
        ++mine;
      }
      link_.broadcast(memory + begin, bytes, owner);
    }
    arrived_[slot_of(layer)] = link_.record(Stream::exchange);
  }

  StreamPlan plan_;
  const Ranks& ranks_;
  DeviceLink& link_;
  const StreamOptions options_;
  std::vector<File> files_;
  std::vector<Piece> mine_;    // of the layers that this rank owns
  std::vector<size_t> first_;  // of each layer, the number of its first piece in mine_
  std::array<std::shared_ptr<std::byte>, 2> slots_;
  std::array<std::unique_ptr<DeviceLink::Event>, 2> arrived_;
  Ring ring_;
  std::unique_ptr<ReadAhead> reader_;  // last: it uses the others
};

}  // namespace

std::unique_ptr<WeightStream> device_stream(StreamPlan plan, const Ranks& ranks, DeviceLink& link, const StreamOptions& options) {
  return std::make_unique<DeviceStream>(std::move(plan), ranks, link, options);
}

}  // namespace hcsmoe
