#include "assembly/written_files.h"

#include <algorithm>
#include <system_error>

#include "hcsmoe/error.h"
#include "support/files.h"

namespace hcsmoe {

namespace fs = std::filesystem;

WrittenFiles::WrittenFiles(const fs::path& work, const std::string& job, const std::vector<OutputFile>& layout, fs::path partial)
    : folder_(work / "resume"), partial_(std::move(partial)) {
  if (job.empty()) return;
  Hasher hasher;
  hasher.add(job + "\n" + fs::absolute(partial_).lexically_normal().string() + "\n");
  for (const OutputFile& file : layout) hasher.add(file.name + " " + std::to_string(file.bytes) + "\n");
  identity_ = hasher.hex();
}

fs::path WrittenFiles::record_file(const std::string& name) const { return folder_ / (name + ".written"); }

void WrittenFiles::record(const FileChecksum& file) const {
  if (identity_.empty()) return;
  make_folder(folder_);
  write_file_atomically(record_file(file.file), identity_ + "\n" + checksum_lines({file}));
}

std::optional<FileChecksum> WrittenFiles::recorded(const OutputFile& file) const {
  std::error_code error;
  if (identity_.empty() || !fs::exists(record_file(file.name), error)) return std::nullopt;
  if (fs::file_size(partial_ / file.name, error) != file.bytes || error) return std::nullopt;
  try {
    const std::string text = read_file(record_file(file.name), 10'000);
    if (!text.starts_with(identity_ + "\n")) return std::nullopt;
    const auto lines = parse_checksum_lines(std::string_view(text).substr(identity_.size() + 1), record_file(file.name).string());
    if (lines.size() == 1 && lines[0].file == file.name) return lines[0];
  } catch (const UserError&) {  // not one of ours: the file is written again
  }
  return std::nullopt;
}

uint64_t WrittenFiles::tidy(const std::vector<OutputFile>& layout) const {
  std::error_code error;
  uint64_t kept = 0;
  std::vector<fs::path> others;
  for (const auto& entry : fs::directory_iterator(partial_, error)) {
    const auto file = std::find_if(layout.begin(), layout.end(), [&](const auto& each) { return each.name == entry.path().filename(); });
    if (file != layout.end() && entry.is_regular_file(error) && !entry.is_symlink(error) && recorded(*file)) {
      kept += file->bytes;
    } else {
      others.push_back(entry.path());
    }
  }
  if (kept == 0) others = {partial_};
  for (const fs::path& path : others) {
    fs::remove_all(path, error);
    if (error) throw UserError("cannot remove " + path.string() + ", left by an earlier run: " + error.message());
  }
  return kept;
}

std::optional<FileChecksum> WrittenFiles::find(const OutputFile& file) const {
  const auto found = recorded(file);
  if (found && file_checksum(partial_ / file.name) == found->checksum) return found;
  return std::nullopt;
}

}  // namespace hcsmoe
