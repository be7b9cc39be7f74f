#include <array>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/error.h"
#include "support/text.h"

namespace hcsmoe {
namespace {

struct Entry {
  const char* name;
  int64_t bytes;
  at::ScalarType torch;
};

// Every element type of safetensors that is a whole number of bytes.
constexpr std::array<Entry, 17> kDtypes = {{
    {"F64", 8, at::kDouble},
    {"F32", 4, at::kFloat},
    {"F16", 2, at::kHalf},
    {"BF16", 2, at::kBFloat16},
    {"F8_E4M3", 1, at::kFloat8_e4m3fn},
    {"F8_E5M2", 1, at::kFloat8_e5m2},
    {"F8_E8M0", 1, at::kFloat8_e8m0fnu},
    {"I64", 8, at::kLong},
    {"I32", 4, at::kInt},
    {"I16", 2, at::kShort},
    {"I8", 1, at::kChar},
    {"U64", 8, at::kUInt64},
    {"U32", 4, at::kUInt32},
    {"U16", 2, at::kUInt16},
    {"U8", 1, at::kByte},
    {"C64", 8, at::kComplexFloat},
    {"BOOL", 1, at::kBool},
}};

}  // namespace

DType dtype_from_name(const std::string& safetensors_name) {
  std::string known;
  for (const Entry& entry : kDtypes) {
    if (safetensors_name == entry.name) return {entry.name, entry.bytes, entry.torch};
    known += (known.empty() ? "" : " ") + std::string(entry.name);
  }
  throw UserError("unknown element type " + name_text(safetensors_name) + "; known are " + known);
}

DType dtype_from_torch(at::ScalarType type) {
  for (const Entry& entry : kDtypes) {
    if (type == entry.torch) return {entry.name, entry.bytes, entry.torch};
  }
  throw Error(std::string("safetensors has no element type for torch's ") + c10::toString(type));
}

}  // namespace hcsmoe
