// The header of a safetensors file. The first two bytes say how many bytes of data the file has beyond those that are given.

#include "fuzz.h"
#include "hcsmoe/checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hcsmoe;
  if (size < 2) return 0;
  const uint64_t more = static_cast<uint64_t>(data[0]) | static_cast<uint64_t>(data[1]) << 8;
  const std::span<const uint8_t> head(data + 2, size - 2);
  return fuzz::answers([&] {
    const SafetensorsHeader header = parse_safetensors_header(std::as_bytes(head), head.size() + more, "a.safetensors");
    uint64_t at = header.data_begin;
    for (const TensorInfo& tensor : header.tensors) {
      fuzz::require(tensor.begin == at && tensor.end >= tensor.begin, "tensors cover the data in order");
      fuzz::require(tensor.bytes() == static_cast<uint64_t>(tensor.elements() * tensor.dtype.bytes), "a tensor has the bytes of its shape");
      at = tensor.end;
    }
    fuzz::require(at == head.size() + more, "tensors cover all of the file");
  });
}
