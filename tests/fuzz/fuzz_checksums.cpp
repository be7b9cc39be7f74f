// checksums.xxh128 of an output folder.

#include "fuzz.h"
#include "support/checksums.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hcsmoe;
  return fuzz::answers([&] {
    const auto files = parse_checksum_lines(fuzz::text(data, size), "checksums");
    fuzz::require(parse_checksum_lines(checksum_lines(files), "written").size() == files.size(), "lines survive being written");
  });
}
