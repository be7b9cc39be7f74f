#include <sys/statvfs.h>

#include <algorithm>
#include <optional>
#include <system_error>

#include "assembly/folder.h"
#include "assembly/layout.h"
#include "assembly/written_files.h"
#include "hcsmoe/error.h"
#include "hcsmoe/log.h"
#include "hcsmoe/shards.h"
#include "support/checksums.h"
#include "support/files.h"
#include "support/text.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;
using Written = std::function<void(uint64_t)>;

constexpr uint64_t buffer_piece = uint64_t{8} << 20;

std::string describe(const TensorInfo& tensor) { return tensor.dtype.name + " " + shape_text(tensor.shape); }

/// A file of the output while it is written. The checksum is of the bytes as they were handed over, so that it also tells of a disk that
/// keeps others.
class OutputWriter {
 public:
  OutputWriter(const fs::path& path, const Written& written) : file_(File::create(path)), written_(written) {}

  void append(std::span<const std::byte> bytes) {
    hasher_.add(bytes);
    file_.write(bytes);
    written_(bytes.size());
  }
  void append(const std::string& text) { append(std::as_bytes(std::span(text))); }
  /// A byte range of another file. It goes through memory, which the checksum needs, and not from file to file inside the kernel.
  void append(const File& source, uint64_t begin, uint64_t bytes) {
    std::vector<std::byte> buffer(std::min(bytes, buffer_piece));
    for (uint64_t done = 0; done < bytes;) {
      const std::span piece(buffer.data(), std::min<uint64_t>(bytes - done, buffer.size()));
      source.read_at(begin + done, piece);
      append(piece);
      done += piece.size();
    }
  }
  uint64_t size() const { return file_.size(); }
  /// Brings it to disk. The checksum.
  std::string finish() {
    file_.sync();
    file_.close();
    return hasher_.hex();
  }

 private:
  File file_;
  Hasher hasher_;
  Written written_;
};

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

FileChecksum write_output_file(const Checkpoint& checkpoint, const fs::path& work, const OutputFile& file, const fs::path& folder,
                               const Written& written, Trace* trace) {
  OutputWriter out(folder / file.name, written);
  out.append(safetensors_header(file.tensors));

  std::optional<ShardReader> shard;
  std::optional<File> source;
  int source_index = -1;
  for (const OutputTensor& tensor : file.tensors) {
    if (tensor.from_shard) {
      if (!shard || shard->layer() != tensor.layer) shard.emplace(shard_file(work, tensor.layer));
      shard->read(tensor.info.name, [&](std::span<const std::byte> piece) { out.append(piece); });
    } else {
      const TensorInfo& original = checkpoint.info(tensor.info.name);
      if (source_index != original.file) {
        source.emplace(File::open_read(checkpoint.files()[static_cast<size_t>(original.file)]));
        source_index = original.file;
      }
      out.append(*source, original.begin, original.bytes());
    }
  }
  checkpoint.require_unchanged();  // what was copied is of the files whose tensors the shards were merged from
  if (out.size() != file.bytes) {
    throw Error(file.name + ": " + std::to_string(out.size()) + " bytes written, " + std::to_string(file.bytes) + " laid out");
  }
  const Span span(trace, Activity::writing, "to the disk");
  return {file.name, out.finish()};
}

FileChecksum copy_whole(const fs::path& from, const fs::path& folder, const std::string& name) {
  const File source = File::open_read(from);
  const FileState before = source.state();
  OutputWriter out(folder / name, [](uint64_t) {});
  out.append(source, 0, before.size);
  require_unchanged(from, before);
  return {name, out.finish()};
}

FileChecksum write_text(const fs::path& folder, const std::string& name, const std::string& text) {
  OutputWriter out(folder / name, [](uint64_t) {});
  out.append(text);
  return {name, out.finish()};
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

/// there: bytes of the output that are written already.
void check_free_space(const std::vector<OutputFile>& files, const OtherFiles& others, const fs::path& output, uint64_t there = 0) {
  fs::path folder = fs::absolute(output).parent_path();
  while (!fs::exists(folder) && folder.has_relative_path()) folder = folder.parent_path();  // it will be made
  struct statvfs disk {};
  // A file system that tells nothing (some network ones) is not refused: a full disk is found when it is written.
  if (::statvfs(folder.c_str(), &disk) != 0 || disk.f_blocks == 0 || disk.f_frsize == 0) return;
  const auto on_disk = [&](uint64_t bytes) { return (bytes + disk.f_frsize - 1) / disk.f_frsize * disk.f_frsize; };
  uint64_t needed = 0;
  for (const OutputFile& file : files) needed += on_disk(file.bytes);
  for (const OtherFiles::File& file : others.copied) needed += on_disk(file.bytes);
  needed -= std::min(needed, there);
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

}  // namespace

void check_output_folder(const Checkpoint& checkpoint, const std::vector<OutputFile>& layout, const fs::path& output) {
  refuse_existing(without_slash(output));
  const fs::path folder = without_slash(output);
  check_free_space(layout, other_files(checkpoint), folder, bytes_in(folder.string() + ".partial"));
}

AssemblySummary assemble(const Ranks& ranks, const Checkpoint& checkpoint, const ModelDescription& model, int64_t experts_kept,
                         int64_t max_shard_bytes, const fs::path& work, const fs::path& output_as_given, const AssemblyOptions& options) {
  const fs::path output = without_slash(output_as_given);
  const fs::path partial = output.string() + ".partial";
  const fs::path parent = output.has_parent_path() ? output.parent_path() : ".";
  const Written written = options.progress ? options.progress : [](uint64_t) {};
  Trace* const trace = options.trace;

  std::vector<OutputFile> files;
  OtherFiles others;
  AssemblySummary summary;
  std::vector<FileChecksum> checksums;  // of the files that this rank wrote; at last, on rank 0, of all
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
  const WrittenFiles before(work, options.job, files, partial);
  ranks.on_root([&] {
    const uint64_t there = before.tidy(files);
    make_folder(parent);
    check_free_space(files, others, output, there);
    make_folder(partial);
  });

  try {
    // Round by round, so that an error of one rank, or a request to stop, ends the others within a file.
    const auto round = static_cast<size_t>(ranks.size());
    for (size_t first = 0; first < files.size(); first += round) {
      ranks.on_all([&] {
        for (size_t i = first; i < std::min(first + round, files.size()); ++i) {
          if (ranks.owner_of(static_cast<int64_t>(i)) != ranks.rank()) continue;
          const Span span(trace, Activity::writing, "output file");
          if (auto found = before.find(files[i])) {
            written(files[i].bytes);
            summary.found += 1;
            checksums.push_back(*found);
            continue;
          }
          checksums.push_back(write_output_file(checkpoint, work, files[i], partial, written, trace));
          before.record(checksums.back());
        }
      });
      if (options.after_round) options.after_round();
    }
    const std::vector<std::string> lines = ranks.gather(checksum_lines(checksums), 0);
    ranks.on_root([&] {
      const Span span(trace, Activity::writing, "other files");
      checksums.clear();
      for (const std::string& of_a_rank : lines) {
        for (FileChecksum& file : parse_checksum_lines(of_a_rank, "checksums of a rank")) checksums.push_back(std::move(file));
      }
      if (files.size() > 1) checksums.push_back(write_text(partial, index_name, index_text(checkpoint, files)));
      checksums.push_back(write_text(partial, "config.json", config_text(checkpoint, model, experts_kept)));
      for (const OtherFiles::File& file : others.copied) checksums.push_back(copy_whole(file.path, partial, file.name));
      std::sort(checksums.begin(), checksums.end(), [](const auto& a, const auto& b) { return a.file < b.file; });
      write_text(partial, checksums_name, checksum_lines(checksums));
      checkpoint.require_unchanged();
      sync_folder(partial);
      refuse_existing(output);
      rename_folder(partial, output);
      sync_folder(parent);
    });
  } catch (const Error& error) {
    // All ranks have left together, so nobody writes any more. What was asked to stop goes on; else a full disk needs the room.
    std::error_code ignored;
    if (ranks.is_root() && error.exit_code() != ExitCode::interrupted) fs::remove_all(partial, ignored);
    throw;
  }
  ranks.all_reduce_sum(std::span(&summary.found, 1));
  for (const OutputFile& file : files) {
    summary.bytes += file.bytes;
    summary.tensors += static_cast<int64_t>(file.tensors.size());
  }
  summary.files = static_cast<int64_t>(files.size());
  summary.copied_files = static_cast<int64_t>(others.copied.size());
  if (ranks.is_root()) {
    for (const FileChecksum& file : checksums) summary.checksums.emplace_back(file.file, file.checksum);
  }
  summary.left_out = others.left_out;
  for (std::string& layer : left_out_layers(checkpoint, model, experts_kept)) summary.left_out.push_back(std::move(layer));
  return summary;
}

}  // namespace hcsmoe
