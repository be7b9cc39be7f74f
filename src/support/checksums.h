#pragma once
// Checksums of files as a folder carries them: lines "HEX  NAME" of XXH3-128, which `xxhsum -c` reads too.

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace hcsmoe {

/// The file of an output folder that holds the checksums of the others.
inline constexpr const char* checksums_name = "checksums.xxh128";
inline constexpr uint64_t max_checksums_bytes = 100'000'000;
inline constexpr const char* checksums_algorithm = "xxh3-128";

struct FileChecksum {
  std::string file;      // a plain name
  std::string checksum;  // 32 hex digits
  bool operator==(const FileChecksum&) const = default;
};

/// Sorted by name. Error: a name that cannot stand in such a line.
std::string checksum_lines(std::vector<FileChecksum>);
/// UserError with source_name and line: not such a line, a name with a path in it, a name that is there twice.
std::vector<FileChecksum> parse_checksum_lines(std::string_view text, const std::string& source_name);
/// Of a whole file, read in pieces. UserError: it cannot be read, or changes meanwhile.
std::string file_checksum(const std::filesystem::path&);

/// Lists a file of a folder anew in its checksums, which change as a whole or not at all. The whole list, by name.
std::vector<FileChecksum> add_to_checksums(const std::filesystem::path& folder, const std::string& file);

}  // namespace hcsmoe
