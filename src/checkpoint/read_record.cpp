#include "checkpoint/read_record.h"

#include <cstring>

#include "hcsmoe/error.h"
#include "hcsmoe/ranks.h"
#include "support/files.h"

namespace hcsmoe {

bool ReadRecord::add(const RangeRead& range) {
  const std::lock_guard lock(mutex_);
  const auto [at, is_new] = checksums_.emplace(std::tuple(range.file, range.begin, range.end), range.checksum);
  return is_new || at->second == range.checksum;
}

std::vector<RangeRead> ReadRecord::ranges() const {
  const std::lock_guard lock(mutex_);
  std::vector<RangeRead> result;
  for (const auto& [place, checksum] : checksums_) result.push_back({std::get<0>(place), std::get<1>(place), std::get<2>(place), checksum});
  return result;
}

std::vector<FileRead> files_read(const Checkpoint& checkpoint, const Ranks& ranks) {
  const std::vector<RangeRead> mine = checkpoint.ranges_read();
  const auto gathered = ranks.gather({reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(RangeRead)}, 0);
  std::vector<FileRead> files;
  ranks.on_root([&] {
    ReadRecord all;
    for (const std::string& bytes : gathered) {
      std::vector<RangeRead> ranges(bytes.size() / sizeof(RangeRead));
      if (!bytes.empty()) std::memcpy(ranges.data(), bytes.data(), bytes.size());
      for (const RangeRead& range : ranges) {
        if (all.add(range)) continue;
        throw UserError(checkpoint.files()[static_cast<size_t>(range.file)].string() + ": two ranks have read different bytes at " +
                            std::to_string(range.begin) + " to " + std::to_string(range.end),
                        "another program writes to the file, or the nodes see different files under this name");
      }
    }
    const std::vector<RangeRead> ranges = all.ranges();
    for (auto range = ranges.begin(); range != ranges.end();) {
      const int file = range->file;
      Hasher hasher;
      FileRead read{checkpoint.files()[static_cast<size_t>(file)].filename().string(), 0, ""};
      for (; range != ranges.end() && range->file == file; ++range) {
        for (const uint64_t number : {range->begin, range->end, range->checksum}) hasher.add(std::as_bytes(std::span(&number, 1)));
        read.bytes += range->end - range->begin;
      }
      read.checksum = hasher.hex();
      files.push_back(std::move(read));
    }
  });
  return files;
}

}  // namespace hcsmoe
