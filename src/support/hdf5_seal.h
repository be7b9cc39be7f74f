#pragma once
// A checksum over the structure of an HDF5 file, that is, over everything in it but the bytes of its datasets (they have checksums of their
// own). The HDF5 library crashes on damaged structures, so they are checked before it sees them. The seal lies behind the end of what HDF5
// calls the file; other programs do not notice it. One that changes the file removes it.
//
//   ... HDF5 file ... | begin, length of each dataset | their number | XXH3-64 of structure and table | "hcsmoe.h"     (64-bit,
//   little-endian)

#include <cstdint>
#include <filesystem>
#include <vector>

#include "support/files.h"

namespace hcsmoe::hdf5 {

struct ByteRange {
  uint64_t begin = 0, length = 0;
};

/// Appends the seal and brings the file to disk. datasets: where their bytes are.
void seal(const std::filesystem::path& file, std::vector<ByteRange> datasets);

/// UserError if there is no seal (a truncated or foreign file), or it does not fit.
void check_seal(const File& file, const std::filesystem::path& path);

}  // namespace hcsmoe::hdf5
