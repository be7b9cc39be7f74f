#pragma once
// What an interrupted assembly has finished of OUTPUT.partial: a record in WORK/resume for each file that is on disk as a whole.

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "hcsmoe/assembly.h"
#include "support/checksums.h"

namespace hcsmoe {

class WrittenFiles {
 public:
  /// job: what the run is asked to do; files of another job or layout are not found. Empty: nothing is found or recorded.
  WrittenFiles(const std::filesystem::path& work, const std::string& job, const std::vector<OutputFile>& layout,
               std::filesystem::path partial);

  /// After the file's last byte is on disk.
  void record(const FileChecksum&) const;
  /// Removes all of OUTPUT.partial that is not recorded. How many bytes stay.
  uint64_t tidy(const std::vector<OutputFile>& layout) const;
  /// Nothing if the file is not recorded, or is not what was recorded: it is read as a whole.
  std::optional<FileChecksum> find(const OutputFile&) const;

 private:
  std::optional<FileChecksum> recorded(const OutputFile&) const;
  std::filesystem::path record_file(const std::string& name) const;
  std::filesystem::path folder_, partial_;
  std::string identity_;  // empty: of no job
};

}  // namespace hcsmoe
