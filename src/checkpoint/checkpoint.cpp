#include "hcsmoe/checkpoint.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_map>
#include <utility>

#include "checkpoint/folder.h"
#include "checkpoint/read_record.h"
#include "hcsmoe/error.h"
#include "support/files.h"
#include "support/json.h"
#include "support/nearest_name.h"
#include "support/text.h"

namespace hcsmoe {
namespace {

constexpr uint64_t largest_config = 16'000'000;
constexpr uint64_t sample_bytes = 4096;  // bytes of a tensor's start, middle and end that go into the fingerprint

void add_number(Hasher& hasher, uint64_t number) {
  std::array<std::byte, 8> bytes;
  for (std::byte& byte : bytes) {
    byte = static_cast<std::byte>(number & 0xff);
    number >>= 8;
  }
  hasher.add(bytes);
}

// With its length before it: "ab" + "c" is not "a" + "bc".
void add_text(Hasher& hasher, std::string_view text) {
  add_number(hasher, text.size());
  hasher.add(text);
}

}  // namespace

struct Checkpoint::State {
  std::filesystem::path folder;
  std::string config_text;
  nlohmann::ordered_json config;
  std::vector<std::filesystem::path> files;
  std::vector<std::shared_ptr<const MappedFile>> maps;  // of files; shared with the tensors that were handed out
  std::vector<TensorInfo> tensors;
  std::unordered_map<std::string, size_t> by_name;
  uint64_t total_bytes = 0;
  std::once_flag fingerprint_once;
  std::string fingerprint;
  ReadRecord read;

  void add_file(const std::filesystem::path& path);
  void check_weight_map(const std::map<std::string, std::string>& weight_map) const;
  std::string make_fingerprint() const;
};

void Checkpoint::State::add_file(const std::filesystem::path& path) {
  auto map = std::make_shared<const MappedFile>(path);
  SafetensorsHeader header = parse_safetensors_header(map->bytes(), map->bytes().size(), path.string());
  map->advise_done(0, header.data_begin);
  for (TensorInfo& info : header.tensors) {
    info.file = static_cast<int>(files.size());
    auto [at, is_new] = by_name.emplace(info.name, tensors.size());
    if (!is_new) {
      throw UserError("tensor " + name_text(info.name) + " is both in " + files[static_cast<size_t>(tensors[at->second].file)].string() +
                          " and in " + path.string(),
                      "remove the file that does not belong to this model, or restore model.safetensors.index.json");
    }
    total_bytes += info.bytes();
    tensors.push_back(std::move(info));
  }
  files.push_back(path);
  maps.push_back(std::move(map));
}

void Checkpoint::State::check_weight_map(const std::map<std::string, std::string>& weight_map) const {
  for (const auto& [tensor, file] : weight_map) {
    const std::string says =
        (folder / "model.safetensors.index.json").string() + ": tensor " + name_text(tensor) + " is said to be in " + file;
    const std::string hint = "index and files do not belong together: download the model again";
    auto found = by_name.find(tensor);
    if (found == by_name.end()) throw UserError(says + ", but it is not there, nor in any other file of the model", hint);
    const std::string actual = files[static_cast<size_t>(tensors[found->second].file)].filename().string();
    if (actual != file) throw UserError(says + ", but it is in " + actual, hint);
  }
}

// Independent of how the tensors are spread over files. Reads with pread and without read-ahead: three pages a tensor, not three times 128
// KiB.
std::string Checkpoint::State::make_fingerprint() const {
  std::vector<File> open_files;
  for (const auto& path : files) {
    open_files.push_back(File::open_read(path));
    hcsmoe::require_unchanged(path, maps[open_files.size() - 1]->state());
    ::posix_fadvise(open_files.back().descriptor(), 0, 0, POSIX_FADV_RANDOM);
  }
  std::vector<const TensorInfo*> sorted;
  for (const TensorInfo& info : tensors) sorted.push_back(&info);
  std::sort(sorted.begin(), sorted.end(), [](auto* a, auto* b) { return a->name < b->name; });

  Hasher hasher;
  add_text(hasher, config_text);
  std::array<std::byte, sample_bytes> buffer;
  for (const TensorInfo* info : sorted) {
    add_text(hasher, info->name);
    add_text(hasher, info->dtype.name);
    add_number(hasher, info->shape.size());
    for (int64_t extent : info->shape) add_number(hasher, static_cast<uint64_t>(extent));
    add_number(hasher, info->bytes());
    const uint64_t length = std::min(info->bytes(), sample_bytes);
    const uint64_t last = info->bytes() - length;
    for (uint64_t offset : {uint64_t{0}, last / 2, last}) {
      std::span<std::byte> sample(buffer.data(), length);
      open_files[static_cast<size_t>(info->file)].read_at(info->begin + offset, sample);
      hasher.add(sample);
      if (last == 0) break;
    }
  }
  for (size_t i = 0; i < files.size(); ++i) hcsmoe::require_unchanged(files[i], maps[i]->state());
  return hasher.hex();
}

Checkpoint::Checkpoint(std::unique_ptr<State> state) : state_(std::move(state)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Checkpoint Checkpoint::open(const std::filesystem::path& folder) {
  FolderContents contents = model_files(folder);
  auto state = std::make_unique<State>();
  state->folder = folder;
  const std::filesystem::path config = folder / "config.json";
  if (std::error_code ignored; !std::filesystem::exists(config, ignored)) {
    throw UserError(config.string() + " is missing", "`model` is the folder of a Hugging Face checkpoint: config.json and *.safetensors");
  }
  state->config_text = read_file(config, largest_config);
  state->config = parse_json(state->config_text, config.string());
  if (!state->config.is_object()) throw UserError(config.string() + ": not a JSON object");
  for (const auto& file : contents.files) state->add_file(file);
  state->check_weight_map(contents.weight_map);
  return Checkpoint(std::move(state));
}

const std::filesystem::path& Checkpoint::folder() const { return state_->folder; }
const nlohmann::ordered_json& Checkpoint::config() const { return state_->config; }
const std::vector<std::filesystem::path>& Checkpoint::files() const { return state_->files; }
const std::vector<TensorInfo>& Checkpoint::tensors() const { return state_->tensors; }
uint64_t Checkpoint::total_bytes() const { return state_->total_bytes; }
bool Checkpoint::has(const std::string& name) const { return state_->by_name.count(name) != 0; }

const TensorInfo& Checkpoint::info(const std::string& name) const {
  if (auto found = state_->by_name.find(name); found != state_->by_name.end()) return state_->tensors[found->second];
  std::vector<std::string> names;
  for (const TensorInfo& info : state_->tensors) names.push_back(info.name);
  const std::string nearest = nearest_name(name, names);
  throw UserError("the checkpoint " + state_->folder.string() + " has no tensor " + name_text(name) +
                      (nearest.empty() ? "" : "; the nearest name is " + name_text(nearest)),
                  "does config.json belong to these files?");
}

std::span<const std::byte> Checkpoint::bytes(const std::string& name) const {
  const TensorInfo& info = this->info(name);
  return state_->maps[static_cast<size_t>(info.file)]->bytes().subspan(info.begin, info.bytes());
}

at::Tensor Checkpoint::tensor(const std::string& name) const {
  const TensorInfo& info = this->info(name);
  const std::shared_ptr<const MappedFile>& map = state_->maps[static_cast<size_t>(info.file)];
  const std::span<const std::byte> bytes = map->bytes().subspan(info.begin, info.bytes());
  const at::TensorOptions options = at::TensorOptions().dtype(info.dtype.torch);
  // The mapping starts on a page, so the file's offset decides.
  if (info.begin % static_cast<uint64_t>(info.dtype.bytes) != 0) {
    at::Tensor copy = at::empty(info.shape, options);
    if (!bytes.empty()) std::memcpy(copy.data_ptr(), bytes.data(), bytes.size());
    return copy;
  }
  // The deleter holds the mapping: the tensor may outlive the checkpoint.
  return at::from_blob(
      const_cast<std::byte*>(bytes.data()), info.shape, [map](void*) {}, options);
}

at::Tensor Checkpoint::tensor(const std::string& name, const std::vector<int64_t>& shape) const {
  const TensorInfo& info = this->info(name);
  if (info.shape != shape) {
    throw UserError(state_->files[static_cast<size_t>(info.file)].string() + ": tensor " + name_text(name) + " has the shape " +
                        shape_text(info.shape) + ", but config.json makes it " + shape_text(shape),
                    "does config.json belong to these files?");
  }
  return tensor(name);
}

void Checkpoint::read_ahead(int file, uint64_t begin, uint64_t end) const {
  const auto i = static_cast<size_t>(file);
  const MappedFile& map = *state_->maps[i];
  if (map.read_ahead(begin, end)) {
    end = std::min<uint64_t>(end, map.bytes().size());
    note_read(file, begin, map.bytes().subspan(begin, end - begin));
    return map.advise_done(begin, end);
  }
  const uint64_t size = std::filesystem::file_size(state_->files[i]), opened = state_->maps[i]->bytes().size();
  const std::string range = "bytes " + std::to_string(begin) + " to " + std::to_string(end) + " cannot be read";
  if (size < opened) {
    throw UserError(state_->files[i].string() + ": " + range + ": the file had " + std::to_string(opened) + " bytes and now has " +
                        std::to_string(size),
                    "is another program writing to it?");
  }
  throw UserError(state_->files[i].string() + ": " + range + ": its disk or network file system fails", "copy the model to another disk");
}

void Checkpoint::note_read(int file, uint64_t begin, std::span<const std::byte> bytes) const {
  if (state_->read.add({file, begin, begin + bytes.size(), checksum64(bytes)})) return;
  throw UserError(state_->files[static_cast<size_t>(file)].string() + ": bytes " + std::to_string(begin) + " to " +
                      std::to_string(begin + bytes.size()) + " are not those that were read there before in this run",
                  "another program writes to the file, or its disk or network file system fails");
}

std::vector<RangeRead> Checkpoint::ranges_read() const { return state_->read.ranges(); }

void Checkpoint::require_unchanged() const {
  for (size_t i = 0; i < state_->files.size(); ++i) hcsmoe::require_unchanged(state_->files[i], state_->maps[i]->state());
}

void Checkpoint::require_unchanged(const std::vector<std::string>& names) const {
  std::set<size_t> files;
  for (const std::string& name : names) files.insert(static_cast<size_t>(info(name).file));
  for (const size_t i : files) hcsmoe::require_unchanged(state_->files[i], state_->maps[i]->state());
}

void Checkpoint::done_with(const std::string& name) const {
  const TensorInfo& info = this->info(name);
  state_->maps[static_cast<size_t>(info.file)]->advise_done(info.begin, info.end);
}

std::string Checkpoint::tensor_lines() const {
  std::string lines;
  for (const TensorInfo& info : state_->tensors) {
    lines += name_text(info.name) + ", " + info.dtype.name + " " + shape_text(info.shape) + ", at byte " + std::to_string(info.begin) +
             " of " + state_->files[static_cast<size_t>(info.file)].filename().string() + "\n";
  }
  return lines;
}

std::string Checkpoint::fingerprint() const {
  std::call_once(state_->fingerprint_once, [this] { state_->fingerprint = state_->make_fingerprint(); });
  return state_->fingerprint;
}

}  // namespace hcsmoe
