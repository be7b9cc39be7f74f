// Text files: lines of JSON or plain, packed or not, and multiple-choice questions. The first byte says which.

#include <array>

#include "calibration/documents.h"
#include "evaluation/passages.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hcsmoe;
  static fuzz::OpenFile file;
  constexpr std::array<const char*, 4> names = {"a.jsonl", "a.txt", "a.jsonl.gz", "a.txt.gz"};
  constexpr DocumentLimits limits{uint64_t{4} << 20, uint64_t{1} << 20, 200};
  if (size == 0) return 0;
  file.fill(fuzz::text(data + 1, size - 1));
  const auto path = file.path(names[data[0] % names.size()]);
  if (data[0] & 4) return fuzz::answers([&] { read_task(path); });
  return fuzz::answers([&] {
    const DocumentFiles documents({path}, "text", limits);
    uint64_t bytes = 0;
    for (const RawDocument& document : documents.raw()) bytes += document.bytes.size();
    fuzz::require(bytes <= limits.all_bytes, "documents are bounded");
    for (size_t i = 0; i < documents.raw().size(); ++i) fuzz::answers([&] { documents.parse(i); });
  });
}
