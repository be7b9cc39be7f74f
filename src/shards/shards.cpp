#include "hcsmoe/shards.h"

#include <algorithm>
#include <cstdio>

#include "hcsmoe/error.h"
#include "support/files.h"
#include "support/hdf5_file.h"

namespace hcsmoe {
namespace {

constexpr const char* format = "hcsmoe-shard/1";

}  // namespace

std::filesystem::path shard_file(const std::filesystem::path& work, int64_t layer) {
  char name[40];
  std::snprintf(name, sizeof name, "layer_%04lld.h5", static_cast<long long>(layer));
  return work / "shards" / name;
}

struct ShardWriter::State {
  explicit State(const std::filesystem::path& path) : file(path, format) {}
  Hdf5Writer file;
};

ShardWriter::ShardWriter(const std::filesystem::path& file, int64_t layer, const ShardOrigin& origin) {
  make_folder(file.parent_path());
  state_ = std::make_unique<State>(file);
  state_->file.attribute("layer", layer);
  state_->file.attribute("checkpoint", origin.checkpoint);
  state_->file.attribute("layer_plan", origin.layer_plan);
}

ShardWriter::~ShardWriter() = default;

void ShardWriter::write(const std::string& name, const DType& dtype, const std::vector<int64_t>& shape, std::span<const std::byte> bytes) {
  state_->file.dataset(name, dtype.name, shape, bytes);
}

void ShardWriter::finish() { state_->file.finish(); }

struct ShardReader::State {
  std::filesystem::path path;
  Hdf5Reader file;
  int64_t layer = 0;
  ShardOrigin origin;
  std::vector<TensorInfo> tensors;
};

ShardReader::ShardReader(const std::filesystem::path& file) : state_(new State{file, Hdf5Reader(file, format), 0, {}, {}}) {
  State& s = *state_;
  s.layer = s.file.integer("layer");
  s.origin = {s.file.text("checkpoint"), s.file.text("layer_plan")};
  for (const Hdf5Dataset& dataset : s.file.datasets()) {
    TensorInfo tensor;
    tensor.name = dataset.name;
    tensor.dtype = dtype_from_name(dataset.dtype);
    tensor.shape = dataset.shape;
    tensor.begin = dataset.offset;
    tensor.end = dataset.offset + dataset.bytes;
    s.tensors.push_back(std::move(tensor));
  }
}

ShardReader::~ShardReader() = default;
ShardReader::ShardReader(ShardReader&&) noexcept = default;

int64_t ShardReader::layer() const { return state_->layer; }
const ShardOrigin& ShardReader::origin() const { return state_->origin; }
const std::vector<TensorInfo>& ShardReader::tensors() const { return state_->tensors; }

const TensorInfo& ShardReader::info(const std::string& name) const {
  const auto& all = state_->tensors;
  const auto found = std::find_if(all.begin(), all.end(), [&](const TensorInfo& tensor) { return tensor.name == name; });
  if (found != all.end()) return *found;
  throw UserError(state_->path.string() + ": the shard has no dataset '" + name + "'",
                  "delete the file, so that the layer is merged again");
}

void ShardReader::read(const std::string& name, const std::function<void(std::span<const std::byte>)>& sink) const {
  state_->file.read(info(name).name, sink);
}

}  // namespace hcsmoe
