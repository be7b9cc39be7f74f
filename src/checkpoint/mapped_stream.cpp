// Weights in the mapped files. The ranks of a node share the page cache, so piece i of a layer is read by the node's rank i mod its ranks.

#include <algorithm>
#include <atomic>

#include "checkpoint/read_ahead.h"
#include "checkpoint/streams.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

class MappedStream : public WeightStream {
 public:
  MappedStream(StreamPlan plan, int local_rank, int local_size, const StreamOptions& options)
      : plan_(std::move(plan)), options_(options), before_{0}, mine_before_{0} {
    for (size_t l = 0; l < plan_.layout.size(); ++l) {
      std::vector<Piece> pieces = layer_pieces(plan_.layout[l], static_cast<int64_t>(l), options.piece);
      for (auto i = static_cast<size_t>(local_rank); i < pieces.size(); i += static_cast<size_t>(local_size)) {
        mine_.push_back(std::move(pieces[i]));
      }
      before_.push_back(before_.back() + plan_.layout[l].bytes);
      mine_before_.push_back(mine_.size());
    }
    reader_ = std::make_unique<ReadAhead>(
        mine_.size(), [this](size_t piece) { return room(mine_[piece].layer); }, [this](size_t piece) { read(mine_[piece]); },
        options.trace);
  }

  void begin_layer(int64_t layer) override {
    const int64_t previous = plan_.current;
    plan_.begin(layer);
    if (previous >= 0) {
      for (const PlacedTensor& tensor : plan_.layout[static_cast<size_t>(previous)].tensors) plan_.checkpoint.done_with(tensor.info->name);
    }
    current_ = layer;
    reader_->wait_for(mine_before_[static_cast<size_t>(layer) + 1], options_.limit);
  }

  at::Tensor tensor(const std::string& name) const override {
    plan_.find(name);  // of the current layer, or of none
    return plan_.checkpoint.tensor(name);
  }

 private:
  /// The layer that is used and the next are always read; others while what is ahead of the used one is within the budget.
  bool room(int64_t layer) const {
    const int64_t current = std::max<int64_t>(current_, plan_.first);
    const auto l = static_cast<size_t>(layer), used = static_cast<size_t>(current);
    return layer <= current + 1 || before_[l + 1] - before_[used + 1] <= options_.read_ahead;
  }
  void read(const Piece& piece) const {
    const Span span(options_.trace, Activity::reading, "weights", piece.layer);
    for (const FileRange& range : piece.ranges) plan_.checkpoint.read_ahead(range.file, range.begin, range.end);
  }

  StreamPlan plan_;
  const StreamOptions options_;
  std::vector<Piece> mine_;
  std::vector<uint64_t> before_;     // bytes of all layers before each, and of all
  std::vector<size_t> mine_before_;  // pieces of this rank likewise
  std::atomic<int64_t> current_{-1};
  std::unique_ptr<ReadAhead> reader_;  // last: it uses the others
};

}  // namespace

std::unique_ptr<WeightStream> mapped_stream(StreamPlan plan, int local_rank, int local_size, const StreamOptions& options) {
  return std::make_unique<MappedStream>(std::move(plan), local_rank, local_size, options);
}

}  // namespace hcsmoe
