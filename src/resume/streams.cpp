#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "hcsmoe/error.h"
#include "hcsmoe/resume.h"
#include "support/files.h"
#include "support/hdf5_file.h"
#include "support/host_data.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;

constexpr const char* format = "hcsmoe-streams/1";

/// A file of streams, as its name says: streams_0003_16384_32768.h5, the layer and the tokens from .. to.
struct Part {
  fs::path file;
  int64_t layer = 0, first = 0, end = 0;
};

fs::path part_file(const fs::path& work, int64_t layer, int64_t first, int64_t end) {
  char name[100];
  std::snprintf(name, sizeof name, "streams_%04lld_%lld_%lld.h5", static_cast<long long>(layer), static_cast<long long>(first),
                static_cast<long long>(end));
  return resume_folder(work) / name;
}

std::vector<Part> parts_in(const fs::path& work) {
  std::vector<Part> parts;
  std::error_code none;
  for (fs::directory_iterator entry(resume_folder(work), none); !none && entry != fs::directory_iterator(); entry.increment(none)) {
    long long layer = 0, first = 0, end = 0;
    if (std::sscanf(entry->path().filename().c_str(), "streams_%lld_%lld_%lld.h5", &layer, &first, &end) != 3) continue;
    if (part_file(work, layer, first, end) != entry->path()) continue;  // a temporary file, or not ours
    parts.push_back({entry->path(), layer, first, end});
  }
  std::sort(parts.begin(), parts.end(),
            [](const Part& a, const Part& b) { return std::tie(a.layer, a.first, a.end) < std::tie(b.layer, b.first, b.end); });
  return parts;
}

std::span<const std::byte> bytes_of(const at::Tensor& rows) {
  return {reinterpret_cast<const std::byte*>(const_data<float>(rows)), rows.nbytes()};
}

Hdf5Reader open_part(const Part& part, const std::string& job) {
  Hdf5Reader reader(part.file, format);
  const bool fits = reader.text("job") == job && reader.integer("layer") == part.layer && reader.integer("first_token") == part.first &&
                    reader.has("original") && reader.info("original").shape.size() == 2 && reader.info("original").dtype == "F32" &&
                    reader.info("original").shape[0] == part.end - part.first;
  if (!fits) throw UserError(part.file.string() + ": not what its name says, or of another run", "delete it");
  return reader;
}

/// Rows of a dataset [n, D] that are the tokens part.first .., into those of `rows`, which are the tokens first ..
void copy_rows(const Hdf5Reader& reader, const std::string& dataset, const Part& part, int64_t first, at::Tensor& rows) {
  const int64_t D = reader.info(dataset).shape[1];
  const auto row_bytes = static_cast<uint64_t>(D) * sizeof(float);
  const auto begin = static_cast<uint64_t>(std::max(part.first, first) - part.first) * row_bytes;
  const auto end = static_cast<uint64_t>(std::min(part.end, first + rows.size(0)) - part.first) * row_bytes;
  auto* const to = reinterpret_cast<std::byte*>(data<float>(rows)) + static_cast<uint64_t>(std::max(part.first, first) - first) * row_bytes;
  uint64_t at = 0;
  reader.read(dataset, [&](std::span<const std::byte> piece) {
    const uint64_t from = std::max(at, begin), until = std::min(at + piece.size(), end);
    if (from < until) std::memcpy(to + (from - begin), piece.data() + (from - at), until - from);
    at += piece.size();
  });
}

}  // namespace

fs::path resume_folder(const fs::path& work) { return work / "resume"; }

void save_streams(const fs::path& work, int64_t layer, const std::string& job, const ResidualStreams& streams) {
  const int64_t N = streams.original.size(0);
  if (N == 0) return;
  Hdf5Writer writer(part_file(work, layer, streams.first_token, streams.first_token + N), format);
  writer.attribute("job", job);
  writer.attribute("layer", layer);
  writer.attribute("first_token", streams.first_token);
  writer.dataset("original", "F32", streams.original.sizes().vec(), bytes_of(streams.original));
  if (streams.compressed.defined()) writer.dataset("compressed", "F32", streams.compressed.sizes().vec(), bytes_of(streams.compressed));
  writer.finish();
}

std::vector<int64_t> saved_layers(const fs::path& work, const std::string& job, int64_t tokens) {
  std::vector<int64_t> layers;
  int64_t covered = 0, layer = -1;
  for (const Part& part : parts_in(work)) {
    if (part.layer != layer) covered = 0;
    layer = part.layer;
    if (part.first > covered || part.end <= covered || part.end > tokens) continue;
    try {
      open_part(part, job);
    } catch (const UserError&) {
      continue;
    }
    covered = part.end;
    if (covered == tokens) layers.insert(layers.begin(), layer);
  }
  return layers;
}

ResidualStreams load_streams(const fs::path& work, int64_t layer, const std::string& job, int64_t first_token, int64_t tokens) {
  ResidualStreams streams;
  streams.first_token = first_token;
  int64_t covered = first_token;
  const int64_t end = first_token + tokens;
  for (const Part& part : parts_in(work)) {
    if (part.layer != layer || part.first > covered || part.end <= covered || covered >= end) continue;
    const Hdf5Reader reader = open_part(part, job);
    const int64_t D = reader.info("original").shape[1];
    const auto rows = [&] { return at::empty({tokens, D}, at::kFloat); };
    if (!streams.original.defined()) streams.original = rows();
    if (!streams.compressed.defined() && reader.has("compressed")) streams.compressed = rows();
    const bool same = streams.original.size(1) == D && reader.has("compressed") == streams.compressed.defined() &&
                      (!reader.has("compressed") || reader.info("compressed").shape == reader.info("original").shape);
    if (!same) throw UserError(part.file.string() + ": does not fit the other files of this layer", "delete it");
    copy_rows(reader, "original", part, first_token, streams.original);
    if (streams.compressed.defined()) copy_rows(reader, "compressed", part, first_token, streams.compressed);
    covered = part.end;
  }
  if (covered < end) throw UserError(resume_folder(work).string() + ": streams after layer " + std::to_string(layer) + " are missing");
  return streams;
}

void drop_streams(const fs::path& work, int64_t before_layer) {
  for (const Part& part : parts_in(work)) {
    std::error_code gone;
    if (part.layer < before_layer) fs::remove(part.file, gone);
  }
}

}  // namespace hcsmoe
