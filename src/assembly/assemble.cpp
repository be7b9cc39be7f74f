#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <system_error>

#include "assembly/folder.h"
#include "assembly/layout.h"
#include "hcsmoe/error.h"
#include "hcsmoe/log.h"
#include "hcsmoe/shards.h"
#include "support/files.h"
#include "support/text.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;
using Written = std::function<void(uint64_t)>;

constexpr uint64_t kernel_piece = uint64_t{64} << 20;  // a copy_file_range call, so that progress is seen
constexpr uint64_t buffer_piece = uint64_t{8} << 20;

std::string describe(const TensorInfo& tensor) { return tensor.dtype.name + " " + shape_text(tensor.shape); }

/// Appends a byte range of one file to another, inside the kernel where the file systems can do so. Wherever that stops, for whatever
/// reason, the rest goes through a buffer: a real error (full disk, shorter source) then shows in File's own calls with its message.
void append_range(File& out, const File& source, uint64_t begin, uint64_t bytes, const Written& written) {
  off_t from = static_cast<off_t>(begin);
  uint64_t left = bytes;
  while (left > 0) {
    const ssize_t count = ::copy_file_range(source.descriptor(), &from, out.descriptor(), nullptr, std::min(left, kernel_piece), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    left -= static_cast<uint64_t>(count);
    written(static_cast<uint64_t>(count));
  }
  if (left == 0) return;
  std::vector<std::byte> buffer(std::min(left, buffer_piece));
  while (left > 0) {
    const std::span piece(buffer.data(), std::min<uint64_t>(left, buffer.size()));
    source.read_at(begin + bytes - left, piece);
    out.write(piece);
    left -= piece.size();
    written(piece.size());
  }
}

/// That a layer's shard holds the merged tensors of the layout, before any byte of the output is written.
void check_shard(const Checkpoint& checkpoint, const fs::path& work, int64_t layer, const std::vector<OutputFile>& files) {
  const fs::path path = shard_file(work, layer);
  const ShardReader shard(path);
  const std::string hint = "delete the file, so that the layer is merged again";
  if (shard.layer() != layer) {
    throw UserError(path.string() + ": holds layer " + std::to_string(shard.layer()) + ", not " + std::to_string(layer), hint);
  }
  if (shard.origin().checkpoint != checkpoint.fingerprint()) {
    throw UserError(path.string() + ": was made from another checkpoint than " + checkpoint.folder().string(), hint);
  }
  for (const OutputFile& file : files) {
    for (const OutputTensor& tensor : file.tensors) {
      if (tensor.layer != layer) continue;
      const TensorInfo& found = shard.info(tensor.info.name);
      if (found.dtype == tensor.info.dtype && found.shape == tensor.info.shape) continue;
      throw UserError(path.string() + ": " + tensor.info.name + " is " + describe(found) + ", expected " + describe(tensor.info), hint);
    }
  }
}

void write_output_file(const Checkpoint& checkpoint, const fs::path& work, const OutputFile& file, const fs::path& folder,
                       const Written& written) {
  File out = File::create(folder / file.name);
  const std::string header = safetensors_header(file.tensors);
  out.write(std::as_bytes(std::span(header)));
  written(header.size());

  std::optional<ShardReader> shard;
  std::optional<File> source;
  int source_index = -1;
  for (const OutputTensor& tensor : file.tensors) {
    if (tensor.from_shard) {
      if (!shard || shard->layer() != tensor.layer) shard.emplace(shard_file(work, tensor.layer));
      shard->read(tensor.info.name, [&](std::span<const std::byte> piece) {
        out.write(piece);
        written(piece.size());
      });
    } else {
      const TensorInfo& original = checkpoint.info(tensor.info.name);
      if (source_index != original.file) {
        source.emplace(File::open_read(checkpoint.files()[static_cast<size_t>(original.file)]));
        source_index = original.file;
      }
      append_range(out, *source, original.begin, original.bytes(), written);
    }
  }
  if (out.size() != file.bytes) {
    throw Error(file.name + ": " + std::to_string(out.size()) + " bytes written, " + std::to_string(file.bytes) + " laid out");
  }
  out.sync();
  out.close();
}

void copy_whole(const fs::path& from, const fs::path& folder) {
  const File source = File::open_read(from);
  File out = File::create(folder / from.filename());
  append_range(out, source, 0, source.size(), [](uint64_t) {});
  out.sync();
  out.close();
}

void write_text(const fs::path& file, const std::string& text) {
  File out = File::create(file);
  out.write(std::as_bytes(std::span(text)));
  out.sync();
  out.close();
}

void refuse_existing(const fs::path& output) {
  // A link that leads nowhere counts as existing too: the rename would replace it.
  if (!fs::exists(fs::symlink_status(output))) return;
  throw UserError("output " + output.string() + " exists", "name another folder in `output`, or remove this one");
}

/// "out/" and "out" name the same folder, but "out/.partial" would be inside it.
fs::path without_slash(const fs::path& folder) {
  const fs::path normal = folder.lexically_normal();
  return normal.has_filename() ? normal : normal.parent_path();
}

void check_free_space(const std::vector<OutputFile>& files, const OtherFiles& others, const fs::path& output) {
  fs::path folder = fs::absolute(output).parent_path();
  while (!fs::exists(folder) && folder.has_relative_path()) folder = folder.parent_path();  // it will be made
  struct statvfs disk {};
  // A file system that tells nothing (some network ones) is not refused: a full disk is found when it is written.
  if (::statvfs(folder.c_str(), &disk) != 0 || disk.f_blocks == 0 || disk.f_frsize == 0) return;
  const auto on_disk = [&](uint64_t bytes) { return (bytes + disk.f_frsize - 1) / disk.f_frsize * disk.f_frsize; };
  uint64_t needed = 0;
  for (const OutputFile& file : files) needed += on_disk(file.bytes);
  for (const OtherFiles::File& file : others.copied) needed += on_disk(file.bytes);
  const uint64_t free = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
  if (needed <= free) return;
  throw UserError("output " + output.string() + " needs " + format_bytes(static_cast<double>(needed)) + ", its disk has " +
                      format_bytes(static_cast<double>(free)) + " free",
                  "free " + format_bytes(static_cast<double>(needed - free)) + " more, or name a folder on another disk in `output`");
}

void rename_folder(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error) throw UserError("cannot rename " + from.string() + " to " + to.string() + ": " + error.message());
}

void remove_stale(const fs::path& partial) {
  std::error_code error;
  fs::remove_all(partial, error);
  if (error) throw UserError("cannot remove " + partial.string() + ", left by an earlier run: " + error.message());
}

}  // namespace

void check_output_folder(const Checkpoint& checkpoint, const std::vector<OutputFile>& layout, const fs::path& output) {
  refuse_existing(without_slash(output));
  check_free_space(layout, other_files(checkpoint), without_slash(output));
}

AssemblySummary assemble(const Ranks& ranks, const Checkpoint& checkpoint, const ModelDescription& model, int64_t experts_kept,
                         int64_t max_shard_bytes, const fs::path& work, const fs::path& output_as_given, const Written& progress,
                         Trace* trace) {
  const fs::path output = without_slash(output_as_given);
  const fs::path partial = output.string() + ".partial";
  const fs::path parent = output.has_parent_path() ? output.parent_path() : ".";
  const Written written = progress ? progress : [](uint64_t) {};

  std::vector<OutputFile> files;
  OtherFiles others;
  ranks.on_root([&] { refuse_existing(output); });
  ranks.on_all([&] {
    const Span span(trace, Activity::reading, "check shards");
    files = output_layout(checkpoint, model, experts_kept, max_shard_bytes);
    others = other_files(checkpoint);
    const std::vector<int64_t> layers = model.moe_layers();
    for (size_t i = 0; i < layers.size(); ++i) {
      if (ranks.owner_of(static_cast<int64_t>(i)) == ranks.rank()) check_shard(checkpoint, work, layers[i], files);
    }
  });
  ranks.on_root([&] {
    remove_stale(partial);
    make_folder(parent);
    check_free_space(files, others, output);
    make_folder(partial);
  });

  try {
    // Round by round, so that an error of one rank stops the others within a file.
    const auto round = static_cast<size_t>(ranks.size());
    for (size_t first = 0; first < files.size(); first += round) {
      ranks.on_all([&] {
        for (size_t i = first; i < std::min(first + round, files.size()); ++i) {
          if (ranks.owner_of(static_cast<int64_t>(i)) != ranks.rank()) continue;
          const Span span(trace, Activity::writing, "output file");
          write_output_file(checkpoint, work, files[i], partial, written);
        }
      });
    }
    ranks.on_root([&] {
      const Span span(trace, Activity::writing, "other files");
      if (files.size() > 1) write_text(partial / index_name, index_text(checkpoint, files));
      write_text(partial / "config.json", config_text(checkpoint, model, experts_kept));
      for (const OtherFiles::File& file : others.copied) copy_whole(file.path, partial);
      sync_folder(partial);
      refuse_existing(output);
      rename_folder(partial, output);
      sync_folder(parent);
    });
  } catch (...) {
    // All ranks have left together, so nobody writes any more. Nothing of it can be used again, and a full disk needs the room.
    std::error_code ignored;
    if (ranks.is_root()) fs::remove_all(partial, ignored);
    throw;
  }

  AssemblySummary summary;
  for (const OutputFile& file : files) {
    summary.bytes += file.bytes;
    summary.tensors += static_cast<int64_t>(file.tensors.size());
  }
  summary.files = static_cast<int64_t>(files.size());
  summary.copied_files = static_cast<int64_t>(others.copied.size());
  summary.left_out = others.left_out;
  for (std::string& layer : left_out_layers(checkpoint, model, experts_kept)) summary.left_out.push_back(std::move(layer));
  return summary;
}

}  // namespace hcsmoe
