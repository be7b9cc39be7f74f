// A .npy file.

#include "fuzz.h"
#include "hcsmoe/calibration.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hcsmoe;
  static fuzz::OpenFile file;
  const auto path = file.path("a.npy");
  file.fill(fuzz::text(data, size));
  return fuzz::answers([&] {
    const at::Tensor values = read_npy(path);
    fuzz::require(values.nbytes() <= size, "values are in the file");
  });
}
