#pragma once
// What the HDF5 reader and writer share: handles, errors, element types. Only for their two files.

#include <hdf5.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace hcsmoe::hdf5 {

constexpr const char* kFormatAttribute = "format";
constexpr const char* kChecksumAttribute = "xxh3_64";

/// Sets HDF5's state that is per process and, the printing of errors, per thread. Every entry point calls it first.
void prepare_library();

/// The calling thread's HDF5 error stack as text; clears it. Its innermost entry holds the file name and strerror, its outermost what was
/// being done.
std::string take_error_stack();

/// Throws UserError: what, and the error stack.
[[noreturn]] void fail(const std::string& what, const std::string& hint = "");

class Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle() = default;
  Handle(hid_t id, Close release) : id_(id), close_(release) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Handle() {
    if (id_ >= 0 && close_(id_) < 0) H5Eclear2(H5E_DEFAULT);
  }
  hid_t id() const { return id_; }
  bool valid() const { return id_ >= 0; }
  bool close() { return id_ < 0 || close_(std::exchange(id_, -1)) >= 0; }

 private:
  hid_t id_ = -1;
  Close close_ = nullptr;
};

/// Of a safetensors name; invalid where there is none.
Handle type_from_name(const std::string& dtype);
/// Empty if it is none of ours.
std::string name_from_type(hid_t type);

/// Of shape x element size; false where that is no sane number.
bool byte_count(const std::vector<int64_t>& shape, size_t element, uint64_t& bytes);

}  // namespace hcsmoe::hdf5
