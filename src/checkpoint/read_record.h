#pragma once
// What a rank has read of a checkpoint: every range of bytes once, with its checksum.

#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "hcsmoe/checkpoint.h"

namespace hcsmoe {

class ReadRecord {
 public:
  /// false: the same range was read before, with another checksum. Any thread.
  bool add(const RangeRead&);
  std::vector<RangeRead> ranges() const;

 private:
  mutable std::mutex mutex_;
  std::map<std::tuple<int, uint64_t, uint64_t>, uint64_t> checksums_;  // by file, begin and end
};

}  // namespace hcsmoe
