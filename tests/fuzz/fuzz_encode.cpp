// Any text in the tokenizer of the test data.

#include "fuzz.h"
#include "hcsmoe/calibration.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hcsmoe;
  static const Tokenizer tokenizer = Tokenizer::load(TEST_DATA "/demo/model");
  static const int64_t vocabulary = tokenizer.vocabulary_size();
  return fuzz::answers([&] {
    for (const int32_t id : tokenizer.encode(fuzz::text(data, size)))
      fuzz::require(id >= 0 && id < vocabulary, "ids are of the vocabulary");
  });
}
