// tokenizer.json, and a text in what it describes.

#include "fuzz.h"
#include "hcsmoe/calibration.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hcsmoe;
  return fuzz::answers([&] {
    const Tokenizer tokenizer = Tokenizer::from_json(fuzz::text(data, size), "tokenizer.json");
    const int64_t vocabulary = tokenizer.vocabulary_size();
    for (const int32_t id : tokenizer.encode("Low lower\n\n lowest 123 <s> \xc3\xa9\xe2\x82\xac \xf0\x9f\x98\x80\tit's</s> ")) {
      fuzz::require(id >= 0 && id < vocabulary, "ids are of the vocabulary");
    }
    tokenizer.automatic_bos();
  });
}
