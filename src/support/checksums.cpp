#include "support/checksums.h"

#include <algorithm>
#include <set>
#include <span>

#include "hcsmoe/error.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

constexpr size_t digits = 32;
constexpr size_t piece_bytes = size_t{8} << 20;

bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         std::none_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f || c == '/' || c == '\\'; });
}

bool is_checksum(std::string_view text) {
  return text.size() == digits && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

}  // namespace

std::string checksum_lines(std::vector<FileChecksum> files) {
  std::sort(files.begin(), files.end(), [](const FileChecksum& a, const FileChecksum& b) { return a.file < b.file; });
  std::string lines;
  for (const auto& [file, checksum] : files) {
    if (!is_plain_name(file) || !is_checksum(checksum)) throw Error("no line of checksums can name " + file + " with " + checksum);
    lines += checksum + "  " + file + "\n";
  }
  return lines;
}

std::vector<FileChecksum> parse_checksum_lines(std::string_view text, const std::string& source_name) {
  std::vector<FileChecksum> files;
  std::set<std::string_view> names;
  for (int64_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::string place = source_name + ":" + std::to_string(number) + ": ";
    if (line.size() < digits + 3 || line.substr(digits, 2) != "  " || !is_checksum(line.substr(0, digits)) ||
        !is_plain_name(line.substr(digits + 2))) {
      throw UserError(place + "expected 32 hexadecimal digits, two blanks and the name of a file", "was the file edited?");
    }
    const std::string_view name = line.substr(digits + 2);
    if (!names.insert(name).second) throw UserError(place + "a file is listed twice", "was the file edited?");
    files.push_back({std::string(name), std::string(line.substr(0, digits))});
  }
  return files;
}

std::string file_checksum(const std::filesystem::path& path) {
  const File file = File::open_read(path);
  const FileState before = file.state();
  std::vector<std::byte> buffer(std::min<uint64_t>(before.size, piece_bytes));
  Hasher hasher;
  for (uint64_t done = 0; done < before.size;) {
    const std::span piece(buffer.data(), std::min<uint64_t>(buffer.size(), before.size - done));
    file.read_at(done, piece);
    hasher.add(piece);
    done += piece.size();
  }
  require_unchanged(path, before);
  return hasher.hex();
}

std::vector<FileChecksum> add_to_checksums(const std::filesystem::path& folder, const std::string& file) {
  const auto list = folder / checksums_name;
  std::vector<FileChecksum> all = parse_checksum_lines(read_file(list, max_checksums_bytes), list.string());
  std::erase_if(all, [&](const FileChecksum& old) { return old.file == file; });
  all.push_back({file, file_checksum(folder / file)});
  std::sort(all.begin(), all.end(), [](const FileChecksum& a, const FileChecksum& b) { return a.file < b.file; });
  write_file_atomically(list, checksum_lines(all));
  return all;
}

}  // namespace hcsmoe
