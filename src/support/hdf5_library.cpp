#include "support/hdf5_library.h"

#include <algorithm>
#include <array>
#include <mutex>

#include "hcsmoe/error.h"

namespace hcsmoe::hdf5 {
namespace {

// A short float as HDF5 describes one: made from binary32 by moving its fields, then shrinking it.
Handle small_float(size_t exponent_bits, size_t mantissa_bits, size_t bias) {
  Handle type(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
  if (!type.valid() || H5Tset_fields(type.id(), 15, mantissa_bits, exponent_bits, 0, mantissa_bits) < 0 || H5Tset_size(type.id(), 2) < 0 ||
      H5Tset_ebias(type.id(), bias) < 0) {
    fail("HDF5 cannot make a 16-bit float type");
  }
  return type;
}

// As h5py stores booleans.
Handle boolean() {
  Handle type(H5Tenum_create(H5T_STD_I8LE), H5Tclose);
  const int8_t no = 0, yes = 1;
  if (!type.valid() || H5Tenum_insert(type.id(), "FALSE", &no) < 0 || H5Tenum_insert(type.id(), "TRUE", &yes) < 0) {
    fail("HDF5 cannot make a boolean type");
  }
  return type;
}

constexpr std::array<const char*, 10> kDtypes = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"};

}  // namespace

void prepare_library() {
  static std::once_flag once;
  std::call_once(once, [] {
    // After a failed H5Fclose, HDF5's exit handler would write to what is gone and crash.
    H5dont_atexit();
    H5open();
  });
  thread_local bool quiet = false;
  if (!quiet) H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  quiet = true;
}

std::string take_error_stack() {
  struct Entries {
    std::string outermost, innermost;
  } entries;
  auto visit = [](unsigned, const H5E_error2_t* error, void* data) -> herr_t {
    auto& result = *static_cast<Entries*>(data);
    std::string text = error->desc ? error->desc : "";
    if (result.outermost.empty()) result.outermost = std::string(error->func_name ? error->func_name : "HDF5") + ": " + text;
    result.innermost = std::move(text);
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, visit, &entries);
  H5Eclear2(H5E_DEFAULT);
  if (entries.outermost.empty() || entries.outermost.ends_with(": " + entries.innermost)) return entries.outermost;
  return entries.outermost + " (" + entries.innermost + ")";
}

void fail(const std::string& what, const std::string& hint) {
  std::string stack = take_error_stack();
  throw UserError(stack.empty() ? what : what + ": " + stack, hint);
}

Handle type_from_name(const std::string& dtype) {
  if (dtype == "F64") return {H5Tcopy(H5T_IEEE_F64LE), H5Tclose};
  if (dtype == "F32") return {H5Tcopy(H5T_IEEE_F32LE), H5Tclose};
  if (dtype == "F16") return small_float(5, 10, 15);
  if (dtype == "BF16") return small_float(8, 7, 127);
  if (dtype == "I64") return {H5Tcopy(H5T_STD_I64LE), H5Tclose};
  if (dtype == "I32") return {H5Tcopy(H5T_STD_I32LE), H5Tclose};
  if (dtype == "I16") return {H5Tcopy(H5T_STD_I16LE), H5Tclose};
  if (dtype == "I8") return {H5Tcopy(H5T_STD_I8LE), H5Tclose};
  if (dtype == "U8") return {H5Tcopy(H5T_STD_U8LE), H5Tclose};
  if (dtype == "BOOL") return boolean();
  return {};
}

std::string name_from_type(hid_t type) {
  for (const char* dtype : kDtypes) {
    if (H5Tequal(type, type_from_name(dtype).id()) > 0) return dtype;
  }
  return "";
}

bool byte_count(const std::vector<int64_t>& shape, size_t element, uint64_t& bytes) {
  bytes = element;
  for (int64_t extent : shape) {
    // Zero counts as one here: who makes an empty tensor of the shape multiplies its strides like that.
    if (extent < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(std::max<int64_t>(extent, 1)), &bytes)) return false;
  }
  const bool possible = bytes <= uint64_t{INT64_MAX};
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) bytes = 0;
  return possible;
}

}  // namespace hcsmoe::hdf5
